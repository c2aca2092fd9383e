"""What dropping likely label errors is worth, for a teacher that is right on 80 % of Banking77's pool. `make bench-cleaning`

python -m tests.bench.cleaning [--seeds 0 1 2] [--out reports/bench/cleaning.json]

Test accuracy of the linear baseline on the teacher's labels, and on what stage sft's cleaning leaves of them: errors at random, of the
hardest rows, and of whole classes (tests/teachers/simulated_teacher.py).
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np

from stages.parts.numbers.baseline import baseline_model
from stages.parts.numbers.label_errors import likely_errors
from stages.parts.run.files import write_json
from tests.bench.labelled import Labelled, folders, labelled
from tests.bench.machine import machine
from tests.teachers.simulated_teacher import ERRORS, wrong_labels

ACCURACY = 0.8


def test_accuracy(texts: np.ndarray, labels: np.ndarray, rows: Labelled, seed: int) -> float:
    return float(baseline_model(seed).fit(texts, labels).score(rows.test.text, rows.test.label))


def cleaned(rows: Labelled, errors: str, seed: int) -> dict[str, float]:
    """Accuracies before and after, and what was dropped."""
    said, _ = wrong_labels(dict(zip(rows.pool.text, rows.pool.label, strict=True)), errors, ACCURACY, seed)
    texts = rows.pool.text.to_numpy()
    labels = np.array([said[text] for text in texts])
    wrong = labels != rows.pool.label.to_numpy()
    dropped = likely_errors(baseline_model(seed, quick=True), list(texts), list(labels), seed)
    return {
        "all": test_accuracy(texts, labels, rows, seed),
        "cleaned": test_accuracy(texts[~dropped], labels[~dropped], rows, seed),
        "without_errors": test_accuracy(texts[~wrong], labels[~wrong], rows, seed),
        "errors": float(wrong.mean()),
        "errors_dropped": float(dropped[wrong].mean()),
        "right_rows_dropped": float(dropped[~wrong].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cleaning", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/cleaning.json"))
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {errors: [] for errors in ERRORS}
    for seed in given.seeds:
        rows = labelled(folders()["banking77"], seed)
        for errors, found in runs.items():
            found.append(cleaned(rows, errors, seed))
            write_json(given.out, {"machine": machine(), "accuracy": ACCURACY, "runs": runs})
            print(errors, seed, found[-1], flush=True)
    names = list(runs[ERRORS[0]][0])
    print("| errors | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for errors, found in runs.items():
        print(f"| {errors} | " + " | ".join(f"{mean(one[name] for one in found):.1%}" for name in names) + " |")


if __name__ == "__main__":
    main()
