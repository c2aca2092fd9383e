"""Turn the teacher's labels into SFT rows, and hold out rows to choose checkpoints and programs on.

The gold rows are no SFT rows: their labels are the only true ones, and `calibrate` needs some that the student has not learned.

python -m stages.sft
"""

import random

from stages.parts import paths
from stages.parts.errors import UserError
from stages.parts.label_errors import likely_errors
from stages.parts.linear import baseline_model
from stages.parts.params import Params, load_params
from stages.parts.records import TeacherLabel, read_json, read_jsonl, write_json, write_jsonl
from stages.parts.stage import run_stage
from stages.parts.task import IntentClassifier, training_messages


def unseal(params: Params, answered: list[TeacherLabel]) -> list[TeacherLabel]:
    """The teacher's rows with the true labels in place of its own: what training could reach, for experiments only."""
    if params.style != "direct":
        raise UserError("sft.labels true has no reasoning to teach: it goes with program.style direct")
    print("EXPERIMENT: the student learns from the sealed true labels; no number of this run is the pipeline's")
    true = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    return [{**row, "label": true[row["id"]], "reasoning": "", "valid": True, "confidence": 1.0} for row in answered]


def main() -> None:
    params = load_params()
    wanted = params.own.sft
    answered: list[TeacherLabel] = read_jsonl(paths.TEACHER_LABELS)
    if params.sft.labels == "true":
        answered = unseal(params, answered)

    rows = [record for record in answered if record["valid"]]
    held_out = wanted.dev + wanted.optimizer_val
    if len(rows) < 2 * held_out:
        raise UserError(
            f"{len(rows)} valid teacher labels are too few to hold out {held_out} rows: lower dev and optimizer_val of "
            f"profiles.{params.profile}.sft, or bring more rows"
        )
    random.Random(params.seed).shuffle(rows)
    dev, val, train = rows[: wanted.dev], rows[wanted.dev : held_out], rows[held_out:]

    # Only training rows are pruned: dev and val stay what the teacher said, hard rows and all.
    pruned = 0
    if params.sft.prune and params.sft.labels == "teacher":
        wrong = likely_errors(baseline_model(params.seed), [row["text"] for row in train], [row["label"] for row in train], params.seed)
        pruned = int(wrong.sum())
        train = [row for row, is_wrong in zip(train, wrong, strict=True) if not is_wrong]

    program = IntentClassifier(read_json(paths.LABELS), params.program.instructions, params.style)
    messages = [{"id": row["id"], "messages": training_messages(program, row["text"], row["label"], row["reasoning"])} for row in train]
    write_jsonl(paths.SFT_TRAIN, messages)
    for path, part in ((paths.SFT_DEV, dev), (paths.OPTIMIZER_VAL, val), (paths.OPTIMIZER_TRAIN, train[: wanted.optimizer_train])):
        write_jsonl(path, [{key: row[key] for key in ("id", "text", "label", "reasoning", "confidence")} for row in part])
    counts = {
        "labels": params.sft.labels,
        "invalid": len(answered) - len(rows),
        "pruned": pruned,
        "train": len(messages),
        "dev": len(dev),
        "optimizer_val": len(val),
    }
    write_json(paths.SFT_REPORT, counts)
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
