"""Turn the teacher's labels into SFT rows, and hold out rows to choose checkpoints and programs on.

The gold rows are no SFT rows: their labels are the only true ones, and `calibrate` needs some that the student has not
learned. Rows that people reviewed are SFT rows (but not with a program that reasons: nobody wrote down reasons).

python -m stages.sft
"""

import random
from collections.abc import Iterable
from typing import Any

from stages.parts.data.leaks import leaks, refuse_copies, without_copies
from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.numbers.baselines import baseline_model
from stages.parts.numbers.label_errors import contradicted_labels, doubted_labels
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json, write_jsonl
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.program import IntentClassifier, training_messages

HELD_OUT_COLUMNS = ("id", "text", "label", "reasoning", "confidence")


def unseal(params: Params, labelled: list[TeacherLabel]) -> list[TeacherLabel]:
    """Return the teacher's rows with the sealed true labels opened, for experiments only.

    `true`: the true labels replace the teacher's. `checked`: rows that the teacher got wrong are left out, as a metric
    does to a teacher's traces in DSPy's tutorial on classification fine-tuning.
    """
    if params.sft.labels == "true" and params.program.style != "direct":
        raise UserError("sft.labels true has no reasoning to teach: it goes with program.style direct")
    true = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    if not true:
        raise UserError(f"sft.labels {params.sft.labels}: a folder's pool has no true labels: leave it at teacher")
    print("EXPERIMENT: the student learns from the sealed true labels; this run's numbers are not the pipeline's")
    if params.sft.labels == "checked":
        return [row for row in labelled if row["label"] == true[row["id"]]]
    return [
        {**row, "label": true[row["id"]], "reasoning": "", "valid": True, "confidence": 1.0, "probabilities": {}}
        for row in labelled
    ]


def as_certain(row: Row) -> TeacherLabel:
    """Return a row that a person labelled in the form of a teacher's, with the whole probability on that label."""
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


def pruned(params: Params, rows: list[TeacherLabel], gold: list[Row], reviewed: set[str]) -> list[TeacherLabel]:
    """Return the rows without the teacher's likely errors; rows whose id is in `reviewed` stay.

    A student that learns the labels as they are (`train.targets: hard`) first loses the rows that the teacher's own
    confidence speaks against. One that draws labels from the teacher's distribution learns that doubt instead.
    """
    if params.train.targets == "hard":
        on_gold = {row["id"]: row for row in read_jsonl(paths.TEACHER_GOLD)}
        right = [on_gold[row["id"]]["label"] == row["label"] for row in gold]
        wrong = doubted_labels(
            [row["confidence"] for row in rows], [on_gold[row["id"]]["confidence"] for row in gold], right
        )
        rows = without(rows, wrong, reviewed)
    classifier = baseline_model(params.seed, quick=True)
    errors = contradicted_labels(classifier, [row["text"] for row in rows], [row["label"] for row in rows], params.seed)
    return without(rows, errors, reviewed)


def without(rows: list[TeacherLabel], wrong: Iterable[bool], reviewed: set[str]) -> list[TeacherLabel]:
    return [row for row, is_wrong in zip(rows, wrong, strict=True) if not is_wrong or row["id"] in reviewed]


def main() -> None:
    params = load_params()
    labelled: list[TeacherLabel] = read_jsonl(paths.TEACHER_LABELS)
    if params.sft.labels != "teacher":
        labelled = unseal(params, labelled)

    # Hold rows out by chance, before anything looks at them.
    # Labels that came with their rows have no reasons to learn.
    reasons = params.program.style == "chain_of_thought"
    rows = [row for row in labelled if row["valid"] and (row["reasoning"] or not reasons)]
    held_out = params.split.held_out_rows
    if len(rows) < params.split.rows_needed:
        raise UserError(
            f"{len(rows)} valid teacher labels are too few to hold out {held_out} rows: lower split.dev and "
            f"split.optimizer_val, or bring more rows"
        )
    random.Random(params.seed).shuffle(rows)
    dev, val, train = rows[: params.split.dev], rows[params.split.dev : held_out], rows[held_out:]
    reviewed: list[Row] = read_jsonl(paths.REVIEWED) if params.program.style == "direct" else []
    train += map(as_certain, reviewed)

    # A text that is scored is not learned, in whatever case and punctuation it comes.
    gold: list[Row] = read_jsonl(paths.GOLD)
    parts: dict[str, list[Any]] = {"gold": gold, "dev": dev, "val": val, "test": read_jsonl(paths.TEST)}
    scored = {name: [row["text"] for row in part] for name, part in parts.items()}
    distinct = without_copies(train, [text for texts in scored.values() for text in texts])

    # Only the teacher's training rows are pruned: dev and val keep its labels, those of hard rows too.
    learned = distinct
    if params.sft.prune and params.sft.labels == "teacher":
        learned = pruned(params, distinct, gold, {row["id"] for row in reviewed})
    if not learned:
        raise UserError(
            "nothing is left to learn from: the teacher is wrong on most gold rows; take a better one, or "
            "sft.prune=false"
        )
    found = leaks({"sft": [row["text"] for row in learned], **scored})
    write_json(paths.LEAKS, found)
    refuse_copies(found, "sft")

    program = IntentClassifier(read_json(paths.LABELS), params.program.instructions, params.program.style)
    messages = (
        {
            "id": row["id"],
            "messages": training_messages(program, row["text"], row["label"], row["reasoning"]),
            "label": row["label"],
            "probabilities": row["probabilities"],
        }
        for row in learned
    )
    write_jsonl(paths.SFT_TRAIN, messages)
    for path, part in (
        (paths.SFT_DEV, dev),
        (paths.OPTIMIZER_VAL, val),
        (paths.OPTIMIZER_TRAIN, learned[: params.optimize.train_rows]),
    ):
        write_jsonl(path, ({name: value for name, value in row.items() if name in HELD_OUT_COLUMNS} for row in part))
    report = {
        "labels": params.sft.labels,
        "invalid": len(labelled) - len(rows),
        "copies": len(train) - len(distinct),
        "pruned": len(distinct) - len(learned),
        "reviewed": len(reviewed),
        "train": len(learned),
        "dev": len(dev),
        "optimizer_val": len(val),
    }
    write_json(paths.SFT_REPORT, report)
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    run_stage(main)
