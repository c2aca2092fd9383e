"""The task, once for training, evaluation and serving: label names, signature, program, adapter, metric, SFT messages.

The labels stand in the instructions and the field is a plain `str`: a `Literal` field would print all labels again after the query,
where no prefix cache can reuse them (dspy's ChatAdapter; 192 tokens a prompt against 33).
"""

import re
from collections.abc import Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from stages.parts.label_probabilities import LABEL_HEADER, label_probabilities
from stages.parts.labels import UNKNOWN, match_label
from stages.parts.params import Style


def signature(labels: Sequence[str], instructions: str) -> type[dspy.Signature]:
    """query -> label, with the labels in the instructions."""
    names = "\n".join(f"- {label}" for label in labels)
    return dspy.Signature("query: str -> label: str", f"{instructions} The intents are:\n{names}")


def adapter() -> dspy.ChatAdapter:
    """The prompt format. No second call in JSON after a parse failure: a failure is a wrong answer."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)


class StudentAdapter(dspy.ChatAdapter):
    """The student's prompt format: the prompt ends with the header of the answer's first field, so that no token is spent on it.

    For engines of our own only, which go on with an assistant's last message where they are told to (`answer_options`).
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def format(self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        return [*super().format(signature, demos, inputs), {"role": "assistant", "content": self.opening(signature)}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        return super().parse(signature, self.opening(signature) + completion)

    def opening(self, signature: type[dspy.Signature]) -> str:
        return f"[[ ## {next(iter(signature.output_fields))} ## ]]\n"


def answer_options(labels: Sequence[str], style: Style) -> dict[str, Any]:
    """What a request to vLLM says beyond OpenAI's protocol: go on with the last message, and end with one of the labels."""
    if style == "direct":
        wanted: dict[str, Any] = {"choice": list(labels)}
    else:
        reasoning = r"([^\[]|\[[^\[])+"  # anything but the next header
        wanted = {"regex": rf"{reasoning}\n\n{re.escape(LABEL_HEADER)}\n({'|'.join(map(re.escape, labels))})"}
    return {"add_generation_prompt": False, "continue_final_message": True, "structured_outputs": wanted}


# Control characters, what shows nothing but joins or turns letters (U+200D stays: emoji need it), halves of surrogate pairs.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# What a parser, or a tokenizer of the Llama, Mistral, Gemma, Qwen, Phi, DeepSeek and GLM families, reads as the end of a turn or a field:
# [[ ## label ## ]], <|eot_id|> (also with full-width bars, U+FF5C), </s>, <end_of_turn>, [INST].
MARKER = re.compile(
    r"\[\[ ## \w+ ## ]]|<[|\uff5c][^|\uff5c<>]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|"
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|gMASK)]"
)
MARKER_START = re.compile(r"<(?=[|\uff5c/\w])|\[(?=\[)")


def harmless(query: str, labels: Sequence[str]) -> str:
    """The query as prompts show it: it can't end its own turn, write a field of the answer, or name a label the way answers do.

    Customers write "card arrival", not "card_arrival": names with underscores are dropped like the markers are. What is left of a marker
    inside another is broken up by a blank.
    """
    text = MARKER.sub(" ", UNPRINTABLE.sub(" ", query))
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True) if "_" in label)
    return MARKER_START.sub(r"\g<0> ", re.sub(names, " ", text, flags=re.IGNORECASE) if names else text)


class IntentClassifier(dspy.Module):
    """A DSPy program that answers every query with a label name or UNKNOWN, and never raises on what a model wrote.

    Predictions carry `label`, `valid`, `reasoning` (empty with style direct), `probabilities` of labels, likeliest first (empty where the
    engine reports none), and `confidence`: the label's own, or None.
    """

    def __init__(self, labels: Sequence[str], instructions: str, style: Style) -> None:
        super().__init__()
        self.labels = tuple(labels)
        kind = dspy.ChainOfThought if style == "chain_of_thought" else dspy.Predict
        self.classify = kind(signature(labels, instructions))

    def forward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(self.classify(query=harmless(query, self.labels)))
        except AdapterParseError:  # a weak model's broken format
            return unparsed()

    async def aforward(self, query: str) -> dspy.Prediction:
        try:
            return self.checked(await self.classify.acall(query=harmless(query, self.labels)))
        except AdapterParseError:
            return unparsed()

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


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether the predicted label is the example's; a prediction without a label (an errored row) is wrong."""
    return bool(example.label == prediction.get("label"))


def example(row: Any) -> dspy.Example:
    """A row with `text` and `label` as a DSPy example whose input is `query`."""
    return dspy.Example(query=row["text"], label=row["label"], reasoning=row.get("reasoning", "")).with_inputs("query")


def training_messages(program: IntentClassifier, text: str, label: str, reasoning: str) -> list[dict[str, str]]:
    """One SFT row as OpenAI messages: what the program's adapter would send for the query, and the answer it would parse."""
    answer = {"reasoning": reasoning, "label": label}
    wanted = predictor(program).signature
    outputs = {name: answer[name] for name in wanted.output_fields}
    row = adapter().format_finetune_data(wanted, demos=[], inputs={"query": harmless(text, program.labels)}, outputs=outputs)
    messages: list[dict[str, str]] = row["messages"]
    messages[-1]["content"] = messages[-1]["content"].rstrip("\n")  # the end-of-turn token ends the answer, one token sooner
    return messages
