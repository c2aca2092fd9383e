"""Temperature and threshold on distributions whose truth is known."""

import numpy as np
import pytest

from stages.parts.numbers.calibration import best_temperature, calibrated
from stages.parts.numbers.statistics import expected_calibration_error, reliability

LABELS = ["a", "b", "c", "d"]


def drawn(rows: int, overconfidence: float) -> tuple[list[dict[str, float]], list[str]]:
    """Distributions, sharpened by an exponent, and labels drawn from the honest ones."""
    generator = np.random.default_rng(0)
    honest = generator.dirichlet(np.full(len(LABELS), 0.7), rows)
    labels = [str(generator.choice(LABELS, p=p)) for p in honest]
    sharpened = honest**overconfidence
    sharpened /= sharpened.sum(axis=1, keepdims=True)
    return [dict(zip(LABELS, map(float, p), strict=True)) for p in sharpened], labels


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_over_and_underconfidence(overconfidence):
    distributions, labels = drawn(3000, overconfidence)
    temperature = best_temperature(distributions, labels, [1.0] * len(labels))
    assert temperature == pytest.approx(overconfidence, rel=0.12)
    surest = [next(iter(calibrated(found, temperature).items())) for found in distributions]
    right = [label == true for (label, _), true in zip(surest, labels, strict=True)]
    assert expected_calibration_error(reliability([value for _, value in surest], right)) < 0.03


def test_a_student_of_a_doubtful_teacher_is_not_believed_more_than_its_teacher():
    distributions, heard = drawn(6000, 2.0)  # the student knows what the teacher says, not what is true
    generator = np.random.default_rng(1)
    certainty = generator.uniform(0.5, 1.0, len(heard))
    kept = generator.random(len(heard)) < certainty
    true = [label if sure else "something else" for label, sure in zip(heard, kept, strict=True)]

    def error(temperature: float) -> float:
        surest = [next(iter(calibrated(found, temperature).items())) for found in distributions]
        right = [label == wanted for (label, _), wanted in zip(surest, true, strict=True)]
        return expected_calibration_error(reliability([value for _, value in surest], right))

    careful = error(best_temperature(distributions, heard, list(certainty)))
    assert careful < 0.6 * error(best_temperature(distributions, heard, [1.0] * len(heard)))


def test_a_label_the_engine_did_not_report_is_a_surprise_not_a_crash():
    assert 0.2 <= best_temperature([{"a": 0.9, "b": 0.1}] * 20, ["c", *["a"] * 19], [1.0] * 20) <= 10
    assert calibrated({}, 2.0) == {}
    assert calibrated({"a": 0.0}, 1.0) == {}
