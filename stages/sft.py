"""Turn the teacher's labels into SFT rows, and hold out rows to choose checkpoints and programs on.

The gold rows are no SFT rows: their labels are the only true ones, and `calibrate` needs some that the student has not
learned. Rows that people reviewed are (with a program that reasons they are not: nobody wrote down reasons).

python -m stages.sft
"""

import random

from stages.parts.data.leaks import leaks, refuse_copies, without_copies
from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.numbers.baselines import baseline_model
from stages.parts.numbers.label_doubt import likely_wrong
from stages.parts.numbers.label_errors import likely_errors
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json, write_jsonl
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.examples import training_messages
from stages.parts.task.program import IntentClassifier


def unseal(params: Params, answered: list[TeacherLabel]) -> list[TeacherLabel]:
    """The teacher's rows with the sealed true labels opened, for experiments only: in its labels' place (`true`), or to
    leave out where it is wrong (`checked`, as a metric does to a teacher's traces in DSPy's tutorial on classification
    fine-tuning)."""
    wanted = params.sft.labels
    if wanted == "true" and params.program.style != "direct":
        raise UserError("sft.labels true has no reasoning to teach: it goes with program.style direct")
    true = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    if not true:
        raise UserError(f"sft.labels {wanted}: nobody knows the true labels of a folder's pool: leave it at teacher")
    print("EXPERIMENT: the student's rows come of the sealed true labels; this run's numbers are not the pipeline's")
    if wanted == "checked":
        return [row for row in answered if row["label"] == true[row["id"]]]
    return [
        {**row, "label": true[row["id"]], "reasoning": "", "valid": True, "confidence": 1.0, "probabilities": {}}
        for row in answered
    ]


def by_a_person(row: Row) -> TeacherLabel:
    """A reviewed row as if a teacher had labelled it that is never wrong."""
    label = row["label"]
    return TeacherLabel(
        id=row["id"],
        text=row["text"],
        label=label,
        reasoning="",
        valid=True,
        confidence=1.0,
        probabilities={label: 1.0},
    )


def pruned(params: Params, rows: list[TeacherLabel], gold: list[Row], by_people: set[str]) -> list[TeacherLabel]:
    """The rows without likely errors of the teacher. Where a student takes labels at their word, those first that its
    own confidence speaks against; one that draws them from the teacher's distribution learns that doubt."""
    if params.train.targets == "hard":
        judged = {row["id"]: row for row in read_jsonl(paths.TEACHER_GOLD)}
        right = [judged[row["id"]]["label"] == row["label"] for row in gold]
        doubtful = likely_wrong(
            [row["confidence"] for row in rows], [judged[row["id"]]["confidence"] for row in gold], right
        )
        rows = [row for row, is_wrong in zip(rows, doubtful, strict=True) if not is_wrong or row["id"] in by_people]
    classifier = baseline_model(params.seed, quick=True)
    errors = likely_errors(classifier, [row["text"] for row in rows], [row["label"] for row in rows], params.seed)
    return [row for row, is_wrong in zip(rows, errors, strict=True) if not is_wrong or row["id"] in by_people]


def main() -> None:
    params = load_params()
    answered: list[TeacherLabel] = read_jsonl(paths.TEACHER_LABELS)
    if params.sft.labels != "teacher":
        answered = unseal(params, answered)

    rows = [record for record in answered if record["valid"]]
    held_out = params.split.held_out
    if len(rows) < params.split.fewest:
        raise UserError(
            f"{len(rows)} valid teacher labels are too few to hold out {held_out} rows: lower split.dev and "
            f"split.optimizer_val, "
            "or bring more rows"
        )
    random.Random(params.seed).shuffle(rows)
    dev, val, train = rows[: params.split.dev], rows[params.split.dev : held_out], rows[held_out:]

    # Copies of what is scored, but for case and punctuation, are no training rows.
    scored = {"gold": read_jsonl(paths.GOLD), "dev": dev, "val": val, "test": read_jsonl(paths.TEST)}
    texts = {name: [row["text"] for row in part] for name, part in scored.items()}
    reviewed: list[Row] = read_jsonl(paths.REVIEWED) if params.program.style == "direct" else []
    train += [by_a_person(row) for row in reviewed]
    known, train = len(train), without_copies(train, [text for part in texts.values() for text in part])
    copies = known - len(train)

    # Only the teacher's training rows are pruned: dev and val stay what it said, hard rows and all.
    before = len(train)
    if params.sft.prune and params.sft.labels == "teacher":
        train = pruned(params, train, scored["gold"], {row["id"] for row in reviewed})
    dropped = before - len(train)
    if not train:
        raise UserError(
            "nothing is left to learn from: the teacher is wrong on most gold rows; take a better one, or "
            "sft.prune=false"
        )

    found = leaks({"sft": [row["text"] for row in train], **texts})
    write_json(paths.LEAKS, found)
    refuse_copies(found, "sft")

    program = IntentClassifier(read_json(paths.LABELS), params.program.instructions, params.program.style)
    messages = [
        {
            "id": row["id"],
            "messages": training_messages(program, row["text"], row["label"], row["reasoning"]),
            "label": row["label"],
            "probabilities": row["probabilities"],
        }
        for row in train
    ]
    write_jsonl(paths.SFT_TRAIN, messages)
    for path, part in (
        (paths.SFT_DEV, dev),
        (paths.OPTIMIZER_VAL, val),
        (paths.OPTIMIZER_TRAIN, train[: params.optimize.train_rows]),
    ):
        write_jsonl(
            path, [{key: row[key] for key in ("id", "text", "label", "reasoning", "confidence")} for row in part]
        )
    counts = {
        "labels": params.sft.labels,
        "invalid": len(answered) - len(rows),
        "copies": copies,
        "pruned": dropped,
        "reviewed": len(reviewed),
        "train": len(messages),
        "dev": len(dev),
        "optimizer_val": len(val),
    }
    write_json(paths.SFT_REPORT, counts)
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
