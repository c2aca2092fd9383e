"""What a student says of a query, with calibrated confidence, and what a service needs of any student.

The service of an in-process student imports this: nothing here may import torch, DSPy, scikit-learn or pandas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from stages.parts.numbers.calibration import Calibration, calibrated
from stages.parts.task.labels import NONE_OF_THESE, UNKNOWN

RUNNERS_UP = 3
Abstention = Literal["unsure", "out_of_scope"]


@dataclass(frozen=True)
class RunnerUp:
    """Another label and its calibrated probability."""

    label: str
    confidence: float


@dataclass(frozen=True)
class CalibratedPrediction:
    """What a student says of a query: the label, or UNKNOWN where a completion names none; its calibrated probability;
    why that is no answer, None for an answer; the next most likely labels; the reasoning, where a program asks for one;
    the weights, by name and hash; the completion's tokens.
    """

    label: str
    confidence: float
    abstained: Abstention | None
    runners_up: list[RunnerUp]
    reasoning: str | None
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answered_by: Literal["student", "teacher"] = "student"
    price_usd: float | None = None  # of the teacher's answer, if it is known
    familiarity: float | None = None  # of the text, if the student knows it (task/readings.py)


def abstention(
    label: str, confidence: float, calibration: Calibration, familiarity: float | None = None
) -> Abstention | None:
    """Return why a label with a calibrated confidence is no answer, None if it is one.

    A text that is unlike all that the student knows is out of scope, however confident the student is.
    """
    least = calibration.least_familiarity
    if familiarity is not None and least is not None and familiarity < least and label != NONE_OF_THESE:
        return "out_of_scope"
    sure = label != UNKNOWN and calibration.threshold is not None and confidence >= calibration.threshold
    return None if sure else "unsure"


def calibrated_prediction(
    label: str,
    probabilities: Mapping[str, float],
    calibration: Calibration,
    model: str,
    familiarity: float | None = None,
) -> CalibratedPrediction:
    """Return the prediction of `label` with a student's probabilities, as they were reported."""
    likely = calibrated(probabilities, calibration.temperature)
    confidence = likely.get(label, 0.0)
    others = [other for other in likely if other != label][:RUNNERS_UP]
    return CalibratedPrediction(
        label=label,
        confidence=confidence,
        abstained=abstention(label, confidence, calibration, familiarity),
        runners_up=[RunnerUp(other, likely[other]) for other in others],
        reasoning=None,
        model=model,
        familiarity=familiarity,
    )


class QueryClassifier(Protocol):
    """A student that answers queries: on an engine (serve/student.py), or in this process (local.py)."""

    @property
    def calibration(self) -> Calibration:
        """How its probabilities are read, and its threshold."""

    @property
    def model(self) -> str:
        """The weights, by name and hash."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the answers."""

    @property
    def pair(self) -> str:
        """A name of all that an answer depends on besides the query."""

    def shown(self, query: str) -> str:
        """Return the text that the student reads of a query. Equal ones have equal predictions; an empty one has
        none.
        """

    async def predict(self, query: str) -> CalibratedPrediction:
        """Return the prediction; raises EngineError."""
