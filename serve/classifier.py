"""The served program: a query to a request, an engine's completion to a calibrated answer."""

from typing import Any

from serve.schemas import Classification, RunnerUp
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.calibration import Calibration, calibrated
from stages.parts.task.labels import UNKNOWN

RUNNERS_UP = 3


class Classifier:
    """Makes requests for queries and reads what an engine responds. Holds no connection and no state."""

    def __init__(self, requests: ProgramRequests, calibration: Calibration) -> None:
        self.requests = requests
        self.calibration = calibration

    @property
    def model(self) -> str:
        return self.requests.model

    @property
    def pair(self) -> str:
        """A name of all that an answer depends on besides the query: weights, program, calibration."""
        return f"{self.model} {self.calibration.model_dump_json()}"

    def request(self, query: str) -> dict[str, Any]:
        """The body of a chat completion request."""
        return self.requests.body(query)

    def trial(self) -> dict[str, Any]:
        """The request of a harmless query: an engine that answers it has nothing against all of them."""
        return self.request("ready?")

    def answer(self, completion: dict[str, Any]) -> Classification:
        """What a chat completion says; raises EngineError where it is none."""
        reading = self.requests.read(completion)
        likely = calibrated(reading.probabilities, self.calibration.temperature)
        confidence = likely.get(reading.label, 0.0)
        threshold = self.calibration.threshold
        others = [other for other in likely if other != reading.label][:RUNNERS_UP]
        return Classification(
            label=reading.label,
            confidence=confidence,
            abstained=reading.label == UNKNOWN or threshold is None or confidence < threshold,
            runners_up=[RunnerUp(label=other, confidence=likely[other]) for other in others],
            reasoning=reading.reasoning,
            model=self.model,
        )
