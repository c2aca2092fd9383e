"""Live queries that two students have predicted."""

from dataclasses import dataclass
from typing import Self

from stages.parts.students.prediction import CalibratedPrediction


@dataclass(frozen=True)
class ShadowAnswer:
    """What a student says of a query, and whether it is sure enough to answer."""

    label: str
    answers: bool

    @classmethod
    def of(cls, prediction: CalibratedPrediction) -> Self:
        """Return what a prediction says."""
        return cls(prediction.label, not prediction.abstained)


@dataclass(frozen=True)
class ShadowedRow:
    """A live query as both students see it; `teacher_label` is None if the teacher was not queried."""

    student: ShadowAnswer
    shadow: ShadowAnswer
    teacher_label: str | None
