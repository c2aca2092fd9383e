"""The served program without DSPy's machinery around it: a query to a request, an engine's response to an answer.

The messages are made by the program's own adapter and read by it (a test holds them byte for byte against what DSPy sends), the
probabilities are read and calibrated as in training: one task, whoever runs it.
"""

from typing import Any

from dspy.utils.exceptions import AdapterParseError

from serve.engine_client import EngineError
from serve.schemas import Answer, RunnerUp
from stages.parts.calibration import Calibration, calibrated
from stages.parts.label_probabilities import ALTERNATIVES, label_probabilities
from stages.parts.labels import UNKNOWN, match_label
from stages.parts.program_file import Sidecar
from stages.parts.task import IntentClassifier, StudentAdapter, answer_options, harmless, predictor

RUNNERS_UP = 3


class Classifier:
    """Makes requests for queries and reads what an engine responds. Holds no connection and no state."""

    def __init__(self, program: IntentClassifier, sidecar: Sidecar, calibration: Calibration, model: str) -> None:
        self.program = program
        self.adapter = StudentAdapter()
        self.signature = predictor(program).signature
        # All but the query's message is the same for every query: system, demonstrations, and the opening of the answer.
        *self.before, _, self.opening = self.adapter.format(self.signature, predictor(program).demos, {"query": ""})
        self.calibration = calibration
        self.options = {
            "model": model,
            "temperature": 0.0,
            "max_tokens": sidecar.max_tokens,
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
            **answer_options(sidecar.labels, sidecar.style),
        }

    @property
    def model(self) -> str:
        return str(self.options["model"])

    def request(self, query: str) -> dict[str, Any]:
        """The body of a chat completion request."""
        shown = {"query": harmless(query, self.program.labels)}
        content = self.adapter.format_user_message_content(self.signature, shown, main_request=True)
        return {"messages": [*self.before, {"role": "user", "content": content}, self.opening], **self.options}

    def answer(self, completion: dict[str, Any]) -> Answer:
        """What a chat completion says; raises EngineError where it is none."""
        try:
            choice = completion["choices"][0]
            content, logprobs = choice["message"]["content"] or "", choice["logprobs"]
            found = label_probabilities(logprobs, self.program.labels)
        except (KeyError, IndexError, TypeError):
            raise EngineError("the engine's answer is no chat completion with log-probabilities") from None
        try:
            fields = self.adapter.parse(self.signature, content)
        except AdapterParseError:  # an answer cut short: its tokens are no label's
            fields, found = {"label": ""}, {}
        label = match_label(fields["label"], self.program.labels)
        likely = calibrated(found, self.calibration.temperature)
        confidence = likely.get(label, 0.0)
        threshold = self.calibration.threshold
        others = [RunnerUp(label=other, confidence=value) for other, value in likely.items() if other != label]
        return Answer(
            label=label,
            confidence=confidence,
            abstained=label == UNKNOWN or threshold is None or confidence < threshold,
            runners_up=others[:RUNNERS_UP],
            reasoning=fields.get("reasoning"),
            model=self.model,
        )
