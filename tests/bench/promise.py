"""Keep the promise of `calibrate.precision` over many draws of gold rows, or show where it breaks. `make bench-promise`

python -m tests.bench.promise [--draws 100] [--out reports/bench/promise.json]

Each draw takes other gold rows, trains the embedded teacher on them and the encoder student on the teacher's labels,
and chooses a threshold for 90 % right answers. It is `broken` if fewer of the answers are right on the test rows. `new`
is the rule of stage calibrate. With the same cross-fitted predictions, `clopper_pearson` is the exact bound on the
answered gold rows alone, and `prediction_powered` Student's limit of prediction-powered inference (Angelopoulos et al.
2023). `point` is the estimate without a bound, on held-out rows with the teacher's confidence and on gold rows. `apart`
is the rule of stage calibrate on students that were refitted without each fold of gold rows; `fresh` on as many more
gold rows that nobody learned from: what the reuse of the teacher's gold rows costs.
`broken_on_pool` compares with the true labels of HELD pool rows that the student has not learned, instead: gold rows
are drawn from the pool, and the sample's test rows are harder than its pool. With `swapped` the teacher confuses two
labels throughout. `calibration_error` is that of the student on test, at the temperature of stage calibrate.

The teacher sees texts through the encoder alone, and trains in short steps: a draw takes seconds, and is kept
(draws.py), so a killed bench goes on where it was.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.stats import t

from stages.parts.numbers.calibration import best_temperature, calibrated
from stages.parts.numbers.promise import (
    GoldEvidence,
    certified_point,
    coverage_points,
    exact_bound,
    same_quantiles,
)
from stages.parts.numbers.statistics import expected_calibration_error, reliability
from stages.parts.run.files import write_json
from tests.bench.draws import DEV, Draw, drawn
from tests.bench.labelled import folders
from tests.bench.machine import machine

WANTED = 0.9
SETTINGS = ((100, False), (100, True), (250, False), (250, True))  # gold rows, labels swapped
CALIBRATED = 5  # draws whose calibration error is measured
START = 0.4  # coverage at which the exact bound begins: fewer than 30 gold rows certify nothing at 90 %


def evidence_of(draw: Draw) -> GoldEvidence:
    confidence = same_quantiles(draw.teacher_gold.max(axis=1), draw.teacher_dev.max(axis=1), draw.confidence)
    return GoldEvidence(confidence, draw.teacher_gold.argmax(axis=1) == draw.gold)


def certified(draw: Draw) -> float:
    """Return the threshold of stage calibrate, infinite if nothing is certified."""
    agreed = (draw.student_dev.argmax(axis=1) == draw.teacher_dev.argmax(axis=1)).astype(float)
    point = certified_point(coverage_points(evidence_of(draw), draw.confidence, agreed), WANTED)
    return point.threshold if point else np.inf


def fresh(draw: Draw) -> float:
    """Return the threshold that as many more gold rows certify, which neither teacher nor student has learned."""
    more = slice(len(draw.gold))
    found = draw.student_pool[more]
    evidence = GoldEvidence(found.max(axis=1), found.argmax(axis=1) == draw.pool[more])
    point = certified_point(coverage_points(evidence, draw.confidence, np.ones(DEV)), WANTED)
    return point.threshold if point else np.inf


def apart(draw: Draw) -> float:
    """Return the threshold that students certify which were refitted without each fold of gold rows."""
    of_gold, confidence = draw.apart_gold.max(axis=1), np.empty(len(draw.gold))
    for number, of_dev in enumerate(draw.apart_dev):
        rows = draw.fold == number
        confidence[rows] = same_quantiles(of_gold[rows], of_dev, draw.confidence)
    evidence = GoldEvidence(confidence, draw.apart_gold.argmax(axis=1) == draw.gold)
    point = certified_point(coverage_points(evidence, draw.confidence, np.ones(DEV)), WANTED)
    return point.threshold if point else np.inf


def prediction_powered(draw: Draw) -> float:
    """Return the lowest threshold before the first with too low a limit: the mean confidence of dev rows, corrected by
    what gold rows miss of theirs.
    """
    agreed = draw.student_dev.argmax(axis=1) == draw.teacher_dev.argmax(axis=1)
    evidence, threshold = evidence_of(draw), np.inf
    for coverage in np.arange(START, 1.001, 0.05):
        candidate = np.quantile(draw.confidence, 1 - coverage)
        of_dev, of_gold = draw.confidence >= candidate, evidence.confidence >= candidate
        missed = (evidence.right - evidence.confidence)[of_gold]
        if len(missed) < 2:
            break
        error = (missed.var(ddof=1) / len(missed) + draw.confidence[of_dev].var(ddof=1) / of_dev.sum()) ** 0.5
        estimate = (draw.confidence * agreed)[of_dev].mean() + missed.mean()
        if estimate - t.ppf(0.95, len(missed) - 1) * error < WANTED:
            break
        threshold = float(candidate)
    return threshold


def clopper_pearson(draw: Draw) -> float:
    """Return the threshold of the exact bound: in a fixed order, up to the first that fails."""
    evidence, threshold = evidence_of(draw), np.inf
    for coverage in np.arange(START, 1.001, 0.05):
        candidate = np.quantile(draw.confidence, 1 - coverage)
        answered = evidence.right[evidence.confidence >= candidate]
        if exact_bound(int(answered.sum()), len(answered)) < WANTED:
            break
        threshold = float(candidate)
    return threshold


def point_estimate(draw: Draw) -> float:
    """Return the lowest threshold with an estimated share of 90 % right answers (Laplace's rule of succession)."""
    agreed = draw.student_dev.argmax(axis=1) == draw.teacher_dev.argmax(axis=1)
    confidence = np.concatenate([draw.confidence, draw.student_gold.max(axis=1)])
    right = np.concatenate([agreed * draw.teacher_dev.max(axis=1), draw.student_gold.argmax(axis=1) == draw.gold])
    order = np.argsort(-confidence, kind="stable")
    enough = np.flatnonzero((np.cumsum(right[order]) + 1) / (np.arange(len(order)) + 3) >= WANTED)
    return float(confidence[order][enough[-1]]) if len(enough) else np.inf


RULES: dict[str, Callable[[Draw], float]] = {
    "new": certified,
    "fresh": fresh,
    "apart": apart,
    "prediction_powered": prediction_powered,
    "clopper_pearson": clopper_pearson,
    "point": point_estimate,
}


def outcome(draw: Draw, threshold: float) -> dict[str, float | None]:
    """Return coverage and precision on test, and precision on the held-out pool rows; None without an answer."""
    found: dict[str, float | None] = {}
    for name, probabilities, actual in (
        ("", draw.student_test, draw.test),
        ("pool_", draw.student_pool, draw.pool),
    ):
        answered = probabilities.max(axis=1) >= threshold
        right = probabilities.argmax(axis=1)[answered] == actual[answered]
        found |= {
            f"{name}coverage": float(answered.mean()),
            f"{name}precision": float(right.mean()) if len(right) else None,
        }
    return found


def calibration_error(draw: Draw) -> float:
    """Return the student's calibration error on test, at the temperature that stage calibrate fits on dev rows."""
    labels = [str(number) for number in range(draw.student_dev.shape[1])]

    def named(probabilities: np.ndarray) -> list[dict[str, float]]:
        return [dict(zip(labels, map(float, shares), strict=True)) for shares in probabilities]

    teacher = draw.teacher_dev.argmax(axis=1)
    certainty = list(draw.teacher_dev.max(axis=1))
    temperature = best_temperature(named(draw.student_dev), [labels[number] for number in teacher], certainty)
    confidence = [max(calibrated(found, temperature).values()) for found in named(draw.student_test)]
    right = draw.student_test.argmax(axis=1) == draw.test
    return expected_calibration_error(reliability(confidence, list(right)))


def summary(outcomes: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return how many draws break the promise, and what their service answers; None for shares of no answers."""

    def broken(name: str) -> int:
        return sum(one[name] is not None and one[name] < WANTED for one in outcomes)  # type: ignore[operator]

    precisions = [one["precision"] for one in outcomes if one["precision"] is not None]
    return {
        "draws": len(outcomes),
        "broken": broken("precision"),
        "broken_on_pool": broken("pool_precision"),
        "coverage": float(np.mean([one["coverage"] for one in outcomes])),
        "answer_nothing": sum(one["precision"] is None for one in outcomes),
        "precision": float(np.mean(precisions)) if precisions else None,
        "lowest_precision": min(precisions, default=None),
    }


def settings() -> Iterator[tuple[str, int, bool]]:
    for gold_rows, swapped in SETTINGS:
        for corpus in folders():
            yield corpus, gold_rows, swapped


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.promise", description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/promise.json"))
    given = parser.parse_args()
    runs = []
    for corpus, gold_rows, swapped in settings():
        outcomes: dict[str, list[dict[str, float | None]]] = {rule: [] for rule in RULES}
        accuracies, errors = [], []
        for seed in range(given.draws):
            draw = drawn(corpus, gold_rows, seed)
            draw = draw.swapped() if swapped else draw
            accuracies.append(float((draw.student_test.argmax(axis=1) == draw.test).mean()))
            if seed < CALIBRATED:
                errors.append(calibration_error(draw))
            for rule, threshold in RULES.items():
                outcomes[rule].append(outcome(draw, threshold(draw)))
        figures = {rule: summary(found) for rule, found in outcomes.items()}
        runs.append(
            {
                "corpus": corpus,
                "gold_rows": gold_rows,
                "swapped": swapped,
                "accuracy": float(np.mean(accuracies)),
                "calibration_error": float(np.mean(errors)),
                "rules": figures,
            }
        )
        write_json(given.out, {"machine": machine(), "wanted": WANTED, "runs": runs})
        for rule, found in figures.items():
            print(corpus, gold_rows, "swapped" if swapped else "", rule, found, flush=True)


if __name__ == "__main__":
    main()
