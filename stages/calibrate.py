"""Calibrate the served student's confidence on rows it was not trained on, and choose the confidence below which it abstains.

python -m stages.calibrate
"""

from stages.parts import paths
from stages.parts.calibration import Calibration, best_temperature, calibrated, lowest_threshold
from stages.parts.params import load_params
from stages.parts.program_file import load_sidecar
from stages.parts.records import read_jsonl, write_json
from stages.parts.stage import run_stage


def main() -> None:
    params = load_params()
    rows = [row for row in read_jsonl(paths.HELD_OUT) if row["probabilities"]]
    labels, certainty = [row["label"] for row in rows], [row["certainty"] for row in rows]

    temperature = best_temperature([row["probabilities"] for row in rows], labels, certainty)
    surest = [next(iter(calibrated(row["probabilities"], temperature).items())) for row in rows]
    confidence = [probability for _, probability in surest]
    # An answer other than the label counts as wrong, though the label may be: rather too careful than not enough.
    right = [sure if label == wanted else 0.0 for (label, _), wanted, sure in zip(surest, labels, certainty, strict=True)]
    threshold = lowest_threshold(confidence, right, params.calibrate.precision)

    answered = [hit for hit, sure in zip(right, confidence, strict=True) if threshold is not None and sure >= threshold]
    pair = load_sidecar(paths.SIDECAR)
    found = Calibration(
        adapter_sha256=pair.adapter_sha256,
        program_sha256=pair.program_sha256,
        temperature=temperature,
        threshold=threshold,
        wanted_precision=params.calibrate.precision,
        rows=len(rows),
        coverage=len(answered) / len(rows),
        precision=sum(answered) / len(answered) if answered else None,
    )
    write_json(paths.CALIBRATION, found.model_dump())
    if threshold is None:
        print(f"no confidence is right on {found.wanted_precision:.0%} of {len(rows)} rows: the service will abstain on every query")
    else:
        print(f"temperature {temperature:.2f}; answers from {threshold:.2f}: {found.coverage:.0%} of rows, {found.precision:.1%} right")


if __name__ == "__main__":
    run_stage(main)
