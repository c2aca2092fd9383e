"""A program's requests to an engine, the predictions in its completions, and the outcomes of rows.

Messages are made and read by the student's or the teacher's prompt format, without DSPy's machinery around it;
tests/engines and tests/serve hold them byte for byte against what DSPy sends.
"""

from dataclasses import dataclass
from typing import Any

from dspy.utils.exceptions import AdapterParseError

from stages.parts.engines.completions import ROUNDING, UNREADABLE, text_of, usage_of
from stages.parts.engines.engine import EndpointKind
from stages.parts.engines.http_client import EngineError, EngineRefuses, QueryRefused, RequestRefused
from stages.parts.task.label_probabilities import alternatives, label_probabilities
from stages.parts.task.labels import UNKNOWN, match_label
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.prompt import StudentFormat, TeacherFormat, answer_form

CUT = "cut short"


@dataclass(frozen=True)
class Prediction:
    """The content of a completion: a label or UNKNOWN, the labels' probabilities (highest first), the reasoning if the
    program has one, its tokens, and what is wrong with a completion that names no label."""

    label: str
    probabilities: dict[str, float]
    reasoning: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wrong: str | None = None


NO_PREDICTION = Prediction(UNKNOWN, {})
NO_ANSWER = "no answer"  # a failure that is the engine's, not the row's
TRIAL = "ready?"  # a harmless query: an engine that answers it has nothing against all of them
QUERY_MARK = "\ue000"  # a private character: no signature holds it


@dataclass(frozen=True)
class Failure:
    """Why a row has no label: a reason that rows share, and the message about this one."""

    reason: str
    message: str

    @classmethod
    def of(cls, error: EngineError) -> "Failure":
        """Return the failure of a row from its request's error; raises one that concerns every row (EngineRefuses)."""
        if isinstance(error, EngineRefuses):
            raise error
        reasons = {QueryRefused: "too long", RequestRefused: "refused"}
        return cls(reasons.get(type(error), NO_ANSWER), str(error))


@dataclass(frozen=True)
class Outcome:
    """What became of a row: its prediction, and the failure if it has none."""

    prediction: Prediction
    failure: Failure | None = None

    @classmethod
    def of(cls, found: Prediction | EngineError) -> "Outcome":
        """Return the outcome of a row from its prediction, with or without a label, or from its request's error.

        Raises an error that concerns every row (EngineRefuses).
        """
        if isinstance(found, EngineError):
            return cls(NO_PREDICTION, Failure.of(found))
        return cls(found, Failure(found.wrong, found.reasoning or "") if found.wrong else None)


class ProgramRequests:
    """Makes requests to `model` for queries and reads the completions. Holds no connection and no state.

    With the student's format, for engines of our own, answers are held to the labels, unless `held` is false; with the
    teacher's, requests are those that DSPy would send. `options` are more keys of the request; None removes one.
    """

    def __init__(
        self,
        program: IntentClassifier,
        kind: EndpointKind,
        model: str,
        max_tokens: int,
        prompt_format: TeacherFormat | None = None,
        options: dict[str, Any] | None = None,
        held: bool = True,
    ) -> None:
        self.program = program
        self.own_options = options or {}
        self.format = prompt_format or StudentFormat()
        self.signature = predictor(program).signature
        # All but the query is the same for every query: system, demonstrations, what stands around it, the opening of a
        # student's answer. (Demonstrations that are chosen by the query stand behind the system message, which is
        # shared still.)
        messages = self.format.format(self.signature, predictor(program).demos, {"query": QUERY_MARK})
        place = max(number for number, message in enumerate(messages) if message["role"] == "user")
        self.before, self.after = messages[:place], messages[place + 1 :]
        self.before_query, self.after_query = messages[place]["content"].split(QUERY_MARK)
        form = answer_form(program.labels, program.style) if held else None
        ours = kind.answer_options(form) if isinstance(self.format, StudentFormat) else {}
        labels = len(program.labels) if isinstance(self.format, StudentFormat) else 0
        probabilities = {"logprobs": True, "top_logprobs": alternatives(labels, kind.max_alternatives)}
        wanted = {
            "model": model,
            "temperature": 0.0,
            "max_tokens": max_tokens,
            **probabilities,
            **ours,
            **self.own_options,
        }
        self.options = {name: value for name, value in wanted.items() if value is not None}

    @property
    def model(self) -> str:
        return str(self.options["model"])

    def body(self, query: str) -> dict[str, Any]:
        """Return the body of a chat completion request for a query."""
        shown = self.program.shown(query)
        if "demos" in shown:
            return {
                "messages": self.format.format(self.signature, shown["demos"], {"query": shown["query"]}),
                **self.options,
            }
        content = f"{self.before_query}{shown['query']}{self.after_query}"
        return {"messages": [*self.before, {"role": "user", "content": content}, *self.after], **self.options}

    def trial(self) -> dict[str, Any]:
        """Return the request of the trial query, which also asks for the prompt's token ids (`prompt_ids`)."""
        return {**self.body(TRIAL), "return_token_ids": True}

    def body_again(self, body: dict[str, Any], completion: dict[str, Any], wrong: str) -> dict[str, Any]:
        """Return the request that follows an unusable answer: with twice the tokens if it was cut short, else with what
        was wrong.
        """
        if wrong == CUT:
            return {
                name: 2 * value if name in ("max_tokens", "max_completion_tokens") else value
                for name, value in body.items()
            }
        content = completion["choices"][0]["message"]["content"].strip() or "(nothing)"
        wanted = self.format.user_message_output_requirements(self.signature)
        complaint = (
            f"Your answer can't be used: {wrong}. The label is one of: {', '.join(self.program.labels)}. {wanted}"
        )
        turns = [{"role": "assistant", "content": content}, {"role": "user", "content": complaint}]
        return {**body, "messages": [*body["messages"], *turns]}

    def read(self, completion: dict[str, Any]) -> Prediction:
        """Return the prediction in a chat completion; raises EngineError if it is none."""
        try:
            choice = completion["choices"][0]
            content, finish = text_of(choice["message"]["content"]), choice.get("finish_reason")
        except UNREADABLE:
            raise EngineError("the engine's answer is no chat completion") from None
        probabilities = self.probabilities(choice.get("logprobs"))
        if "logprobs" not in choice and isinstance(self.format, StudentFormat):  # our own engine always has the key
            raise EngineError("the engine's answer is no chat completion with log-probabilities")
        usage = usage_of(completion)
        cost = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        try:
            fields = self.format.parse(self.signature, content)
        except AdapterParseError:
            return Prediction(
                UNKNOWN, {}, **cost, wrong=what_is_wrong(finish, "it is not in the form that was asked for")
            )
        label = match_label(fields["label"], self.program.labels)
        wrong = what_is_wrong(finish, "it names none of the labels") if label == UNKNOWN else None
        return Prediction(label, probabilities or {}, fields.get("reasoning"), **cost, wrong=wrong)

    def probabilities(self, logprobs: Any) -> dict[str, float] | None:
        """Return the labels' probabilities, highest first; None if the log-probabilities can't be read.

        They are in [0, 1], and their sum is, whatever numbers a vendor sends.
        """
        try:
            found = label_probabilities(logprobs, self.program.labels) if logprobs else None
        except UNREADABLE:
            return None
        return found if found is not None and sum(found.values()) <= 1 + ROUNDING else None


def what_is_wrong(finish_reason: str | None, otherwise: str) -> str:
    """Return why an answer has no label."""
    if finish_reason == "length":
        return CUT
    return "it was held back by a content filter" if finish_reason == "content_filter" else otherwise
