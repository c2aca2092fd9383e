"""A program's requests to an engine without DSPy's machinery around them, and what the engine's completions say.

Messages are made by the student's own prompt format and read by it (tests/serve holds them byte for byte against what DSPy sends), labels
and probabilities as in the program: one task, whoever asks.
"""

from dataclasses import dataclass
from typing import Any

from dspy.utils.exceptions import AdapterParseError

from stages.parts.engines.client import EngineError
from stages.parts.engines.engine import EngineKind
from stages.parts.task.label_probabilities import label_probabilities
from stages.parts.task.labels import UNKNOWN, match_label
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.prompt import StudentFormat, answer_form
from stages.parts.task.sanitise import harmless


@dataclass(frozen=True)
class Reading:
    """What a completion says: a label or UNKNOWN, the labels' probabilities, likeliest first, the reasoning where the program asks for it,
    and the tokens that it cost."""

    label: str
    probabilities: dict[str, float]
    reasoning: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


NO_READING = Reading(UNKNOWN, {})


class ProgramRequests:
    """Makes requests to `model` for queries and reads the completions. Holds no connection and no state.

    `held` says whether the engine holds answers to the labels, as it does in service.
    """

    def __init__(self, program: IntentClassifier, kind: EngineKind, model: str, most_tokens: int, held: bool = True) -> None:
        self.program = program
        self.format = StudentFormat()
        self.signature = predictor(program).signature
        # All but the query's message is the same for every query: system, demonstrations, and the opening of the answer.
        *self.before, _, self.opening = self.format.format(self.signature, predictor(program).demos, {"query": ""})
        self.options = {
            "model": model,
            "temperature": 0.0,
            "max_tokens": most_tokens,
            "logprobs": True,
            "top_logprobs": kind.most_alternatives,
            **kind.answer_options(answer_form(program.labels, program.style) if held else None),
        }

    @property
    def model(self) -> str:
        return str(self.options["model"])

    def body(self, query: str) -> dict[str, Any]:
        """The body of a chat completion request."""
        shown = {"query": harmless(query, self.program.labels)}
        content = self.format.format_user_message_content(self.signature, shown, main_request=True)
        return {"messages": [*self.before, {"role": "user", "content": content}, self.opening], **self.options}

    def read(self, completion: dict[str, Any]) -> Reading:
        """What a chat completion says; raises EngineError where it is none."""
        try:
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            content, logprobs = choice["message"]["content"] or "", choice["logprobs"]
            probabilities = label_probabilities(logprobs, self.program.labels)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EngineError("the engine's answer is no chat completion with log-probabilities") from None
        cost = {"prompt_tokens": usage.get("prompt_tokens", 0), "completion_tokens": usage.get("completion_tokens", 0)}
        try:
            fields = self.format.parse(self.signature, content)
        except AdapterParseError:  # an answer cut short: its tokens are no label's
            return Reading(UNKNOWN, {}, **cost)
        label = match_label(fields["label"], self.program.labels)
        return Reading(label, probabilities, fields.get("reasoning"), **cost)
