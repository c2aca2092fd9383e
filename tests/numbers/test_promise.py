"""What the gold rows certify: the bound on draws whose truth is known, and what is said if they certify nothing."""

import numpy as np
import pytest
from scipy.special import expit, logit

from stages.parts.numbers.promise import (
    GoldEvidence,
    certified_point,
    coverage_points,
    exact_bound,
    likely_point,
    more_rows_needed,
    same_quantiles,
)

CONFIDENCE = np.linspace(0.3, 0.99, 24)
DRAWS = 2000


def chance(ceiling: float = 1.0) -> np.ndarray:
    """The true chance of CONFIDENCE's answers to be right."""
    return ceiling * expit(0.3 + 1.1 * logit(CONFIDENCE))


def drawn(rows: int, generator: np.random.Generator, truth: np.ndarray) -> GoldEvidence:
    """Gold rows with confidences of CONFIDENCE, counted: a row for the right and a row for the wrong ones of each."""
    counts = generator.multinomial(rows, np.full(len(CONFIDENCE), 1 / len(CONFIDENCE)))
    right = generator.binomial(counts, truth)
    return GoldEvidence(
        np.tile(CONFIDENCE, 2),
        np.repeat([True, False], len(CONFIDENCE)),
        np.concatenate([right, counts - right]).astype(float),
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [50, 100, 734])
def test_a_threshold_that_is_too_low_is_certified_in_one_draw_of_twenty(rows):
    """The promise itself, over the whole search of thresholds, if the wanted precision is just above a threshold's."""
    truth = chance()
    ranked = np.cumsum(truth[::-1]) / np.arange(1, len(truth) + 1)
    wanted = ranked[17] + 1e-9  # 18 of 24 rows fall just short of it
    generator = np.random.default_rng(rows)
    broken = 0
    for _ in range(DRAWS):
        points = coverage_points(drawn(rows, generator, truth), CONFIDENCE, np.ones(len(CONFIDENCE)))
        found = certified_point(points, wanted)
        broken += found is not None and found.coverage >= 18 / 24 - 1e-9
    assert 0.94 <= 1 - broken / DRAWS <= 0.965


def test_errors_at_every_confidence_are_not_hidden_by_the_model():
    """A teacher that swaps two labels is wrong however sure it is: nothing above its ceiling is certified."""
    truth, generator = chance(ceiling=0.88), np.random.default_rng(1)
    certified = [
        certified_point(coverage_points(drawn(250, generator, truth), CONFIDENCE, np.ones(len(CONFIDENCE))), 0.9)
        for _ in range(200)
    ]
    assert sum(point is not None for point in certified) <= 10


def test_answers_that_count_as_wrong_lower_the_bound():
    evidence, counts = drawn(400, np.random.default_rng(2), chance()), np.ones(len(CONFIDENCE))
    counts[-3:] = 0
    all_count, some_count = (coverage_points(evidence, CONFIDENCE, each) for each in (np.ones(len(CONFIDENCE)), counts))
    assert all(less.bound < more.bound for less, more in zip(some_count, all_count, strict=True))
    assert some_count[0].bound == 0, "the most confident rows are all wrong"


def test_more_rows_certify_what_few_can_not():
    truth, ones = chance(), np.ones(len(CONFIDENCE))
    few = drawn(40, np.random.default_rng(3), truth)
    points = coverage_points(few, CONFIDENCE, ones)
    wanted = points[0].estimate - 0.02
    assert certified_point(points, wanted) is None
    more = more_rows_needed(few, CONFIDENCE, ones, wanted)
    assert more
    for times, enough in ((1 + more / 40, True), (1 + 0.9 * more / 40, False)):
        repeated = GoldEvidence(few.confidence, few.right, few.weight * times)
        assert (certified_point(coverage_points(repeated, CONFIDENCE, ones), wanted) is not None) == enough
    assert more_rows_needed(few, CONFIDENCE, np.zeros(len(CONFIDENCE)), wanted) is None


def test_the_search_stops_at_the_first_threshold_that_fails():
    points = coverage_points(drawn(100, np.random.default_rng(4), chance()), CONFIDENCE, np.ones(len(CONFIDENCE)))
    bounds = [point.bound for point in points]
    assert certified_point(points, bounds[0] + 1e-6) is None
    likely = likely_point(points, points[5].estimate)
    assert likely and likely.coverage >= points[5].coverage and likely.bound < likely.estimate


def test_quantiles_carry_a_confidence_from_one_scale_to_another():
    teacher, student = np.linspace(0, 1, 101), np.linspace(0.5, 0.9, 101)
    assert same_quantiles(np.array([0.0, 0.25, 1.0, 2.0]), teacher, student) == pytest.approx([0.5, 0.6, 0.9, 0.9])


def test_the_exact_bound_is_that_of_the_binomial():
    assert exact_bound(0, 5) == 0
    assert exact_bound(29, 29) == pytest.approx(0.05 ** (1 / 29))
