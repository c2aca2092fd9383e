"""Intervals, paired comparisons and calibration error."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import f1_score

BINS = 10
RESAMPLES = 10_000


def interval(right: int, rows: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of an accuracy."""
    proportion = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    return float(proportion.low), float(proportion.high)


def rows_to_halve(right: int, rows: int) -> int:
    """Return how many more rows, at the same accuracy, make the interval at most half as wide (about three times as
    many).
    """
    low, high = interval(right, rows)

    def width(total: int) -> float:
        new_low, new_high = interval(round(right * total / rows), total)
        return new_high - new_low

    return bisect_left(range(rows, 8 * rows), True, key=lambda total: width(total) <= (high - low) / 2)


def difference_interval(first: Sequence[bool], second: Sequence[bool], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of first's accuracy minus second's on the same rows: a paired bootstrap."""
    paired = np.asarray(first, int) - np.asarray(second, int)
    # Resampling rows is a multinomial draw of these three counts.
    counts = np.array([(paired == value).sum() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(seed).multinomial(len(paired), counts / len(paired), RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(paired), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return p of McNemar's exact test: the chance of a split this uneven if both models were equally accurate.

    The split is that of the rows on which exactly one of the two is right.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def macro_f1(actual: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean F1 of the labels in `actual`, each with the same weight."""
    return float(f1_score(actual, predicted, labels=sorted(set(actual)), average="macro", zero_division=0))


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """Return bins of equal width by confidence: mean `confidence`, `accuracy` and count `n` of each bin with rows."""
    values, hits = np.asarray(confidence), np.asarray(right, float)
    number = np.minimum((values * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(values[number == k].mean()),
            "accuracy": float(hits[number == k].mean()),
            "n": int((number == k).sum()),
        }
        for k in range(BINS)
        if (number == k).any()
    ]


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Return the mean distance of confidence and accuracy over rows (Naeini et al. 2015)."""
    return sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / sum(b["n"] for b in bins)


def coverage_curve(confidence: Sequence[float], right: Sequence[bool]) -> list[dict[str, float]]:
    """Return the accuracy of the most confident rows for each coverage in twentieths: `coverage` and `accuracy`."""
    hits = np.asarray(right, float)[np.argsort(-np.asarray(confidence), kind="stable")]
    return [
        {"coverage": share / 20, "accuracy": float(hits[: max(1, round(len(hits) * share / 20))].mean())}
        for share in range(1, 21)
    ]
