"""The task, once for training, evaluation and serving: label names, signature, program, adapter, metric, SFT messages.

The labels stand in the instructions and the field is a plain `str`: a `Literal` field would print all labels again after the query,
where no prefix cache can reuse them (dspy's ChatAdapter; 192 tokens a prompt against 33).
"""

import math
from collections.abc import Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from stages.parts.labels import UNKNOWN, match_label
from stages.parts.params import Style

LABEL_HEADER = "[[ ## label ## ]]"


def signature(labels: Sequence[str], instructions: str) -> type[dspy.Signature]:
    """query -> label, with the labels in the instructions."""
    names = "\n".join(f"- {label}" for label in labels)
    return dspy.Signature("query: str -> label: str", f"{instructions} The intents are:\n{names}")


def adapter() -> dspy.ChatAdapter:
    """The prompt format. No second call in JSON after a parse failure: a failure is a wrong answer."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)


class IntentClassifier(dspy.Module):
    """A DSPy program that answers every query with a label name or UNKNOWN, and never raises on what a model wrote.

    Predictions carry `label`, `valid`, `reasoning` (empty with style direct) and `confidence`: the product of the probabilities of the
    label's tokens, or None where the engine reports none.
    """

    def __init__(self, labels: Sequence[str], instructions: str, style: Style) -> None:
        super().__init__()
        self.labels = tuple(labels)
        kind = dspy.ChainOfThought if style == "chain_of_thought" else dspy.Predict
        self.classify = kind(signature(labels, instructions))

    def forward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(self.classify(query=query))
        except AdapterParseError:  # a weak model's broken format
            return unparsed()

    async def aforward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(await self.classify.acall(query=query))
        except AdapterParseError:
            return unparsed()

    def checked(self, answer: dspy.Prediction) -> dspy.Prediction:
        """What a model answered, its label matched to a name."""
        label = match_label(answer.label, self.labels)
        return dspy.Prediction(
            label=label,
            valid=label != UNKNOWN,
            reasoning=answer.get("reasoning") or "",
            confidence=label_confidence(answer.get("logprobs")),
        )


def unparsed() -> dspy.Prediction:
    """The prediction for an answer in a broken format; a new one each time, since DSPy writes token counts into it."""
    return dspy.Prediction(label=UNKNOWN, valid=False, reasoning="", confidence=None)


def predictor(program: IntentClassifier) -> dspy.Predict:
    """The program's one predictor, which holds its signature and demonstrations."""
    return program.predictors()[0]


def label_confidence(logprobs: Any) -> float | None:
    """Probability of the label's tokens given all before them, from an OpenAI-style logprobs object; None where it can't be told."""
    if not logprobs:
        return None
    text, total, inside = "", 0.0, False
    for entry in logprobs["content"]:
        if inside and entry["token"].strip():
            if entry["token"].lstrip().startswith("[["):
                break
            total += entry["logprob"]
        text += entry["token"]
        inside = LABEL_HEADER in text
    return math.exp(total) if inside else None


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether the predicted label is the example's; a prediction without a label (an errored row) is wrong."""
    return bool(example.label == prediction.get("label"))


def example(row: Any) -> dspy.Example:
    """A row with `text` and `label` as a DSPy example whose input is `query`."""
    return dspy.Example(query=row["text"], label=row["label"], reasoning=row.get("reasoning", "")).with_inputs("query")


def training_messages(program: IntentClassifier, text: str, label: str, reasoning: str) -> list[dict[str, str]]:
    """One SFT row as OpenAI messages: what the program's adapter would send for the query, and the answer it would parse."""
    outputs = {"reasoning": reasoning, "label": label}
    wanted = predictor(program).signature
    row = adapter().format_finetune_data(
        signature=wanted, demos=[], inputs={"query": text}, outputs={name: outputs[name] for name in wanted.output_fields}
    )
    messages: list[dict[str, str]] = row["messages"]
    messages[-1]["content"] = messages[-1]["content"].rstrip("\n")  # the end-of-turn token ends the answer, one token sooner
    return messages
