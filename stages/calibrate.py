"""Calibrate the served student's confidence on rows it was not trained on, and choose the confidence below which it
abstains.

python -m stages.calibrate
"""

from typing import Any

from stages.parts.numbers.calibration import Calibration, best_temperature, calibrated, lowest_threshold
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.program_file import load_sidecar


def label_certainty(row: dict[str, Any], teacher_right: float) -> float:
    """Return the probability that a held-out row's label is true: 1 if a person gave it, else the teacher's confidence,
    or without one its accuracy on gold rows.
    """
    if row["by"] == "hand":
        return 1.0
    return teacher_right if row["confidence"] is None else float(row["confidence"])


def main() -> None:
    params = load_params()
    gold = {row["id"]: row["label"] for row in read_jsonl(paths.GOLD)}
    teacher_gold = read_jsonl(paths.TEACHER_GOLD)
    # Laplace's rule of succession
    teacher_right = (sum(row["label"] == gold[row["id"]] for row in teacher_gold) + 1) / (len(teacher_gold) + 2)
    rows = [row for row in read_jsonl(paths.HELD_OUT) if row["probabilities"]]
    labels, certainty = [row["label"] for row in rows], [label_certainty(row, teacher_right) for row in rows]

    # There may be no rows: a student too small to finish its reasoning names no label at all.
    temperature = best_temperature([row["probabilities"] for row in rows], labels, certainty) if rows else 1.0
    predicted = [next(iter(calibrated(row["probabilities"], temperature).items())) for row in rows]
    confidence = [probability for _, probability in predicted]
    # A prediction other than the label counts as wrong, though the label may be: this errs on the careful side.
    right = [
        sure if label == wanted else 0.0 for (label, _), wanted, sure in zip(predicted, labels, certainty, strict=True)
    ]
    # Leave none_of_these out: its easy hits would hide wrong labels.
    named = [
        (hit, sure)
        for hit, sure, (label, _) in zip(right, confidence, predicted, strict=True)
        if label != NONE_OF_THESE
    ]
    threshold = lowest_threshold([sure for _, sure in named], [hit for hit, _ in named], params.calibrate.precision)

    answered = [hit for hit, sure in named if threshold is not None and sure >= threshold]
    pair = load_sidecar(paths.SIDECAR)
    calibration = Calibration(
        checkpoint_sha256=pair.checkpoint_sha256,
        program_sha256=pair.program_sha256,
        temperature=temperature,
        threshold=threshold,
        wanted_precision=params.calibrate.precision,
        rows=len(rows),
        coverage=len(answered) / len(rows) if rows else 0.0,
        precision=sum(answered) / len(answered) if answered else None,
    )
    write_json(paths.CALIBRATION, calibration.model_dump())
    if threshold is None:
        print(
            f"no threshold reaches {calibration.wanted_precision:.0%} right answers on {len(rows)} rows: the service "
            f"will abstain on every query"
        )
    else:
        answers = f"{calibration.coverage:.0%} of rows answered, {calibration.precision:.1%} of them right"
        print(f"temperature {temperature:.2f}, threshold {threshold:.2f}: {answers}")


if __name__ == "__main__":
    run_stage(main)
