"""Drift: months of traffic like the held-out rows raise no alarm, a real shift is noticed soon."""

import numpy as np
import pytest

from stages.parts.traffic.change_detector import ChangeDetector
from stages.parts.traffic.drift import FALSE_ALARM_AFTER, FEWEST, familiar_texts
from tests.traffic.test_change_detector import first_alarm

QUERIES = 300_000  # of a month at ten thousand a day


def held_out(familiarity: np.ndarray) -> list[dict[str, object]]:
    return [{"id": str(number), "familiarity": float(each)} for number, each in enumerate(familiarity)]


def detector(draw: np.random.Generator, rows: int) -> tuple[ChangeDetector, float]:
    found = familiar_texts(held_out(draw.beta(6, 3, rows)))
    assert found
    return ChangeDetector(found.expected, FALSE_ALARM_AFTER), found.least


def test_the_expected_share_holds_for_95_of_100_draws_of_held_out_rows():
    draw = np.random.default_rng(0)
    live = np.sort(draw.beta(6, 3, 100_000))
    kept = 0
    for _ in range(400):
        found = familiar_texts(held_out(draw.beta(6, 3, 400)))
        assert found and 0.86 < found.expected < 0.89
        kept += 1 - np.searchsorted(live, found.least) / len(live) >= found.expected
    assert 0.93 <= kept / 400 <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 400])
def test_two_years_of_stationary_traffic_raise_one_alarm_at_the_most(rows):
    draw = np.random.default_rng(1)
    alarms = 0
    for _ in range(24):  # months, each of another run with other held-out rows
        watched, least = detector(draw, rows)
        alarms += first_alarm(watched, draw.beta(6, 3, QUERIES) >= least) <= QUERIES
    assert alarms <= 1


@pytest.mark.parametrize(("strange", "within"), [(0.1, 4_000), (0.3, 500), (1.0, 30)])
def test_a_shift_is_noticed_soon(strange, within):
    """A share of the queries is of another kind, whose familiarity is lower."""
    draw = np.random.default_rng(2)
    delays = []
    for _ in range(20):
        watched, least = detector(draw, 400)
        assert first_alarm(watched, draw.beta(6, 3, 20_000) >= least) > 20_000
        shifted = np.where(draw.random(20_000) < strange, draw.beta(2, 8, 20_000), draw.beta(6, 3, 20_000))
        delays.append(first_alarm(watched, shifted >= least))
    assert np.quantile(delays, 0.9) <= within


def test_few_rows_or_a_student_without_familiarity_say_nothing():
    assert familiar_texts(held_out(np.ones(FEWEST - 1))) is None
    assert familiar_texts([{"id": "a", "familiarity": None}] * 100) is None
    assert familiar_texts([{"id": "a"}] * 100) is None
