"""The DSPy program that teacher and student run, what it runs in, and what it learns from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from stages.parts.run.params import Style
from stages.parts.task.label_probabilities import label_probabilities
from stages.parts.task.labels import UNKNOWN, match_label
from stages.parts.task.prompt import StudentFormat, TeacherFormat, signature
from stages.parts.task.text import safe_text


class IntentClassifier(dspy.Module):
    """A DSPy program that answers every query with a label name or UNKNOWN, and never raises on what a model wrote.

    Predictions carry `label`, `valid`, `reasoning` (empty with style direct), `probabilities` of labels, likeliest
    first (empty where the engine reports none), and `confidence`: the label's own, or None. `descriptions` of labels
    are for a teacher (`signature`).

    `nearest`, where set, chooses the demonstrations for each query (`retrieval.Nearest`); without it all of the
    predictor's are shown.
    """

    def __init__(
        self, labels: Sequence[str], instructions: str, style: Style, descriptions: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.style = style
        self.nearest: Callable[[str], list[Any]] | None = None
        kind = dspy.ChainOfThought if style == "chain_of_thought" else dspy.Predict
        self.classify = kind(signature(labels, instructions, descriptions))

    def forward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(self.classify(**self.shown(query)))
        except AdapterParseError:  # a weak model's broken format
            return unparsed()

    async def aforward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(await self.classify.acall(**self.shown(query)))
        except AdapterParseError:
            return unparsed()

    def shown(self, query: str) -> dict[str, Any]:
        """What the prompt shows of a query: its harmless text and, where they depend on it, the demonstrations."""
        text = safe_text(query, self.labels)
        return {"query": text} if self.nearest is None else {"query": text, "demos": self.nearest(text)}

    def checked(self, answer: dspy.Prediction) -> dspy.Prediction:
        """What a model answered, its label matched to a name."""
        label = match_label(answer.label, self.labels)
        probabilities = label_probabilities(answer.get("logprobs"), self.labels)
        return dspy.Prediction(
            label=label,
            valid=label != UNKNOWN,
            reasoning=answer.get("reasoning") or "",
            probabilities=probabilities,
            confidence=probabilities.get(label),
        )


def unparsed() -> dspy.Prediction:
    """The prediction for an answer in a broken format; a new one each time, since DSPy writes token counts into it."""
    return dspy.Prediction(label=UNKNOWN, valid=False, reasoning="", probabilities={}, confidence=None)


def predictor(program: IntentClassifier) -> dspy.Predict:
    """The program's one predictor, which holds its signature and demonstrations."""
    return program.predictors()[0]


@contextmanager
def using(lm: dspy.LM, prompt_format: dspy.Adapter | None = None) -> Iterator[None]:
    """Run programs on `lm`, by default in the teacher's format, counting tokens."""
    with dspy.context(lm=lm, adapter=prompt_format or TeacherFormat(), track_usage=True, disable_history=True):
        yield


def example(row: Any, labels: Sequence[str]) -> dspy.Example:
    """Return a row with `text` and `label` as a DSPy example whose input is `query`: its text as prompts show it, since
    an example becomes a demonstration.
    """
    shown = safe_text(row["text"], labels)
    return dspy.Example(query=shown, label=row["label"], reasoning=row.get("reasoning", "")).with_inputs("query")


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether the predicted label is the example's; a prediction without a label (an errored row) is wrong."""
    return bool(example.label == prediction.get("label"))


def training_messages(program: IntentClassifier, text: str, label: str, reasoning: str) -> list[dict[str, str]]:
    """Return one SFT row as OpenAI messages: what the program would send for the query, and the answer it would
    parse.
    """
    student, wanted = StudentFormat(), predictor(program).signature
    prompt = student.format(wanted, [], {"query": safe_text(text, program.labels)})[:-1]
    answer = student.format_assistant_message_content(wanted, {"reasoning": reasoning, "label": label})
    return [*prompt, {"role": "assistant", "content": answer}]
