"""Each interval and test of the report covers what it says, on 2,000 draws of the sizes that reports have."""

import numpy as np
import pytest

from stages.parts.numbers.statistics import calibration_p, difference_interval, interval, mcnemar_p, score_interval

DRAWS = 2000
SIZES = (50, 100, 734)
pytestmark = pytest.mark.parametrize("rows", SIZES)


def covers(share: float) -> bool:
    return 0.94 <= share <= 0.965


def test_wilson(rows):
    generator = np.random.default_rng(rows)
    accuracy = generator.uniform(0.5, 0.98, DRAWS)
    right = generator.binomial(rows, accuracy)
    bounds = np.array([interval(int(count), rows) for count in range(rows + 1)])
    low, high = bounds[right].T
    assert covers(((low <= accuracy) & (accuracy <= high)).mean())


def paired(generator: np.random.Generator, rows: int, even: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of rows that only the first and only the second of two models is right on, and their true difference."""
    discordant = generator.uniform(0.05, 0.3, DRAWS)
    share = np.full(DRAWS, 0.5) if even else generator.uniform(0.2, 0.8, DRAWS)
    both = generator.binomial(rows, discordant)
    first = generator.binomial(both, share)
    return first, both - first, discordant * (2 * share - 1)


def test_paired_difference(rows):
    first, second, difference = paired(np.random.default_rng(rows), rows, even=False)
    low, high = score_interval(first, second, rows)
    assert covers(((low <= difference) & (difference <= high)).mean())
    assert np.array_equal(mcnemar_p(first, second) < 0.05, (low > 0) | (high < 0)), "test and interval agree"
    one = difference_interval(*(np.arange(rows) < first[0], np.arange(rows) >= rows - second[0]))
    assert one == pytest.approx((low[0], high[0])), "a pair of models is a draw of its own"


def test_mcnemar_between_equal_models(rows):
    first, second, _ = paired(np.random.default_rng(rows), rows, even=True)
    assert covers((mcnemar_p(first, second) > 0.05).mean())


def test_calibration_of_true_confidences(rows):
    generator = np.random.default_rng(rows)
    confidence = generator.beta(5, 1.5, (DRAWS, rows))
    right = generator.random((DRAWS, rows)) < confidence
    accepted = [calibration_p(each, hits) > 0.05 for each, hits in zip(confidence, right, strict=True)]
    assert covers(np.mean(accepted))
    assert calibration_p([0.95] * rows, [True] * (rows // 2) + [False] * (rows - rows // 2)) < 0.001
