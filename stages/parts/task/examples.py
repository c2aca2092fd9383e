"""Rows as the optimiser's examples and as SFT messages, and the metric."""

from typing import Any

import dspy

from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.prompt import TeacherFormat
from stages.parts.task.safe_text import safe_text


def example(row: Any) -> dspy.Example:
    """A row with `text` and `label` as a DSPy example whose input is `query`."""
    return dspy.Example(query=row["text"], label=row["label"], reasoning=row.get("reasoning", "")).with_inputs("query")


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether the predicted label is the example's; a prediction without a label (an errored row) is wrong."""
    return bool(example.label == prediction.get("label"))


def training_messages(program: IntentClassifier, text: str, label: str, reasoning: str) -> list[dict[str, str]]:
    """One SFT row as OpenAI messages: what the program would send for the query, and the answer it would parse."""
    answer = {"reasoning": reasoning, "label": label}
    wanted = predictor(program).signature
    outputs = {name: answer[name] for name in wanted.output_fields}
    row = TeacherFormat().format_finetune_data(
        wanted, demos=[], inputs={"query": safe_text(text, program.labels)}, outputs=outputs
    )
    messages: list[dict[str, str]] = row["messages"]
    # the end-of-turn token ends the answer, one token sooner
    messages[-1]["content"] = messages[-1]["content"].rstrip("\n")
    return messages
