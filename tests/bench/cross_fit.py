"""Compare the linear teacher's cross-fitted accuracy on gold with its accuracy on the pool. `make bench-cross-fit`

python -m tests.bench.cross_fit [--seeds 0 1 2 3 4] [--out reports/bench/cross_fit.json]

`gold` is the accuracy on gold rows of teachers fitted without their labels, `pool` that of the teacher on the pool.
`folds` is the accuracy on the pool of the teachers that predicted gold: `folds` minus `pool` is the cost of their fewer
gold rows, the rest of the difference is chance. Brier scores are beside them.
"""

import argparse
import time
from pathlib import Path
from statistics import mean

import numpy as np

from stages.parts.data.rows import as_rows
from stages.parts.run.files import write_json
from stages.parts.teachers.self_trained import SelfTraining, mean_probabilities
from tests.bench.labelled import Labelled, folders, labelled
from tests.bench.machine import machine


def accuracy_and_brier(probabilities: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Return accuracy and Brier score of probabilities [N, K] for class numbers [N]."""
    right = probabilities.argmax(axis=1) == actual
    return float(right.mean()), float(((probabilities.max(axis=1) - right) ** 2).mean())


def cross_fitted(rows: Labelled, seed: int) -> dict[str, float]:
    pool_classes, gold_classes = (
        np.array([rows.labels.index(label) for label in part.label]) for part in (rows.pool, rows.gold)
    )
    training = SelfTraining(list(rows.pool.text), list(as_rows(rows.gold)), rows.labels, seed)
    seen = [vectors[training.pool] for vectors in training.vectors]
    found = {}
    started = time.process_time()
    found["pool"], found["pool_brier"] = accuracy_and_brier(
        training.classifier().probabilities(list(rows.pool.text)), pool_classes
    )
    fitted = time.process_time()
    found["gold"], found["gold_brier"] = accuracy_and_brier(training.gold_probabilities(), gold_classes)
    found["seconds_to_fit"], found["seconds_to_judge"] = fitted - started, time.process_time() - fitted
    by_fold = [mean_probabilities(seen, training.fit(~left_out, quick=True)) for left_out in training.folds()]
    found["folds"] = mean(accuracy_and_brier(probabilities, pool_classes)[0] for probabilities in by_fold)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cross_fit", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/cross_fit.json"))
    given = parser.parse_args()
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for corpus, folder in folders().items():
        runs[corpus] = {}
        for seed in given.seeds:
            runs[corpus][str(seed)] = cross_fitted(labelled(folder, seed), seed)
            write_json(given.out, {"machine": machine(), "runs": runs})
            print(corpus, seed, runs[corpus][str(seed)], flush=True)
    print("| corpus | seed | gold | pool | folds | gold_brier | pool_brier |\n|---|---|---|---|---|---|---|")
    for corpus, by_seed in runs.items():
        for seed, found in by_seed.items():
            shares = " | ".join(f"{found[name]:.1%}" for name in ("gold", "pool", "folds"))
            print(f"| {corpus} | {seed} | {shares} | {found['gold_brier']:.3f} | {found['pool_brier']:.3f} |")


if __name__ == "__main__":
    main()
