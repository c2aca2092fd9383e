"""The alarm on a falling rate: false alarms are as rare as promised, real falls are found soon."""

import numpy as np
import pytest

from stages.parts.traffic.change_detector import ChangeDetector


def first_alarm(detector: ChangeDetector, yes: np.ndarray) -> int:
    """The observation of the first alarm; one more than there are if there is none."""
    for number, each in enumerate(yes, start=1):
        if detector.observe(bool(each)):
            return number
    return len(yes) + 1


@pytest.mark.parametrize("true_rate", [0.9, 0.95])
def test_false_alarms_are_at_least_as_far_apart_as_promised(true_rate):
    draw = np.random.default_rng(0)
    found = [first_alarm(ChangeDetector(0.9, 500), draw.random(3_000) < true_rate) for _ in range(150)]
    assert np.mean(found) >= 500  # runs that are cut off at 3,000 count as 3,001, which is less than they would take


@pytest.mark.parametrize(("fallen", "within"), [(0.9, 1_500), (0.8, 250), (0.5, 40)])
def test_a_fall_is_found_soon_however_long_all_was_well(fallen, within):
    draw = np.random.default_rng(1)
    delays = []
    for _ in range(20):
        detector = ChangeDetector(0.97)
        assert first_alarm(detector, draw.random(3_000) < 0.98) == 3_001
        delays.append(first_alarm(detector, draw.random(3_000) < fallen))
    assert np.quantile(delays, 0.9) <= within


def test_an_alarm_stays_until_it_is_reset():
    detector = ChangeDetector(0.95)
    assert first_alarm(detector, np.zeros(100, bool)) < 20
    assert detector.observe(True)
    detector.reset()
    assert not detector.observe(True)
