"""Every contender on one scale: linear and encoder student, decoder pair and teacher, by their answers to test rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.parts.numbers.calibration import Calibration
from stages.parts.numbers.metrics import ContenderFigures, Difference, Measure
from stages.parts.numbers.statistics import (
    calibration_p,
    difference_interval,
    expected_calibration_error,
    interval,
    macro_f1,
    mcnemar,
    reliability,
)


@dataclass(frozen=True)
class ContenderAnswers:
    """A contender's answers to the N test rows, and what they took.

    `confidence` [N] is calibrated; `answered` [N] says which rows the service does not abstain on. Without a
    calibration neither is known. `seconds` is the time of all rows at once, `seconds_alone` those of some queries sent
    one at a time. MB are of 10^6 bytes.
    """

    predicted: Sequence[str]
    confidence: Sequence[float]
    answered: Sequence[bool] = ()
    calibration: Calibration | None = None
    seconds: float | None = None
    seconds_alone: Sequence[float] = ()
    file_mb: float | None = None
    memory_mb: float | None = None
    start_s: float | None = None


def measure(right: Sequence[bool]) -> Measure:
    low, high = interval(sum(right), len(right))
    return Measure(accuracy=sum(right) / len(right), low=low, high=high, n=len(right))


def difference(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Return first's accuracy minus second's on the same rows."""
    low, high = difference_interval(first, second)
    return Difference(low=low, high=high, p=mcnemar(first, second))


def contender_figures(
    answers: ContenderAnswers, actual: Sequence[str], best_right: Sequence[bool] | None
) -> ContenderFigures:
    """Return a contender's figures; `best_right` says which rows the best contender is right on, None for
    the best itself.
    """
    right = [label == true for label, true in zip(answers.predicted, actual, strict=True)]
    confidence, calibration = answers.confidence, answers.calibration
    answered = [hit for hit, given in zip(right, answers.answered, strict=True) if given] if calibration else []
    median, slow = np.quantile(answers.seconds_alone, [0.5, 0.95]) if answers.seconds_alone else (None, None)
    return ContenderFigures(
        accuracy=measure(right),
        macro_f1=macro_f1(actual, answers.predicted),
        less=difference(best_right, right) if best_right is not None else None,
        temperature=calibration.temperature if calibration else None,
        threshold=calibration.threshold if calibration else None,
        answered=len(answered) / len(right) if calibration else None,
        precision=measure(answered) if answered else None,
        calibration_error=expected_calibration_error(reliability(confidence, right)) if confidence else None,
        calibration_p=calibration_p(confidence, right) if confidence else None,
        p50_ms=None if median is None else 1000 * float(median),
        p95_ms=None if slow is None else 1000 * float(slow),
        rows_per_second=len(right) / answers.seconds if answers.seconds else None,
        file_mb=answers.file_mb,
        memory_mb=answers.memory_mb,
        start_s=answers.start_s,
    )
