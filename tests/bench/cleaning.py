"""Measure what dropping likely label errors gains, for a teacher that is right on 80 % of Banking77's pool. `make
bench-cleaning`

python -m tests.bench.cleaning [--seeds 0 1 2] [--out reports/bench/cleaning.json]

The figure is the test accuracy of the linear baseline: on all of the teacher's labels (`all`), without those that
confident learning drops (`confident_learning`), without those that the teacher's confidence speaks against either
(`with_doubt`, as stage sft does for train.targets hard), and without any error (`without_errors`). Errors are random,
in the hardest rows, or in whole classes (tests/teachers/simulated_teacher.py). The teacher's confidence is informative:
0.75 to 0.99 on right rows, 0.35 to 0.95, mostly low, on wrong ones.
"""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd

from stages.parts.numbers.baselines import baseline_model
from stages.parts.numbers.label_errors import contradicted_labels, doubted_labels
from stages.parts.run.files import write_json
from stages.parts.task.text import safe_text
from tests.bench.labelled import Labelled, folders, labelled
from tests.bench.machine import machine
from tests.teachers.simulated_teacher import ERRORS, SimulatedTeacher, wrong_labels

ACCURACY = 0.8


def cleaned(rows: Labelled, errors: str, seed: int) -> dict[str, float]:
    """Return the accuracy of each arm, and the shares of errors and of right rows that `with_doubt` drops."""
    truth = dict(zip(pd.concat([rows.pool, rows.gold]).text, pd.concat([rows.pool, rows.gold]).label, strict=True))
    given, _ = wrong_labels(truth, errors, ACCURACY, seed)
    teacher = SimulatedTeacher(given, truth, argparse.Namespace(seed=seed))
    texts, labels = rows.pool.text.to_numpy(), rows.pool.text.map(given).to_numpy()
    wrong = labels != rows.pool.label.to_numpy()
    of_pool, of_gold = (
        [teacher.confidence(safe_text(text, rows.labels)) for text in part.text] for part in (rows.pool, rows.gold)
    )

    def contradicted(kept: np.ndarray) -> np.ndarray:
        """Return a mask of the kept rows that confident learning drops."""
        dropped = np.zeros(len(texts), bool)
        dropped[kept] = contradicted_labels(
            baseline_model(seed, quick=True), list(texts[kept]), list(labels[kept]), seed
        )
        return dropped

    doubtful = doubted_labels(of_pool, of_gold, list(rows.gold.text.map(given) == rows.gold.label))
    by_arm = {
        "all": np.zeros(len(texts), bool),
        "confident_learning": contradicted(np.ones(len(texts), bool)),
        "with_doubt": doubtful | contradicted(~doubtful),
        "without_errors": wrong,
    }
    fits = {arm: baseline_model(seed).fit(texts[~dropped], labels[~dropped]) for arm, dropped in by_arm.items()}
    accuracies = {arm: float(model.score(rows.test.text, rows.test.label)) for arm, model in fits.items()}
    dropped = by_arm["with_doubt"]
    return {
        **accuracies,
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
