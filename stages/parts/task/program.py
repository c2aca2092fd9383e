"""The DSPy program that teacher and student run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from stages.parts.run.params import Style
from stages.parts.task.label_probabilities import label_probabilities
from stages.parts.task.labels import UNKNOWN, match_label
from stages.parts.task.prompt import signature
from stages.parts.task.safe_text import safe_text


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
