"""Running a DSPy program over many rows: the teacher's labelling and the students' scoring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from stages.parts.labels import UNKNOWN
from stages.parts.task import IntentClassifier, example, metric


@dataclass(frozen=True)
class Scores:
    """A program's answers on labelled rows: `accuracy` in [0, 1]; the lists stand in the order of the rows."""

    accuracy: float
    predicted: list[str]
    probabilities: list[dict[str, float]]
    prompt_tokens: int
    completion_tokens: int


def answer_all(program: IntentClassifier, texts: Sequence[str], threads: int) -> list[dspy.Prediction | None]:
    """The program's predictions, in order; None for a query that kept failing after the LM's retries. Shows a progress bar."""
    queries = [dspy.Example(query=text).with_inputs("query") for text in texts]
    # No straggler time-out: it would ask a slow engine the same question again.
    run = dspy.Parallel(num_threads=threads, max_errors=len(queries) + 1, provide_traceback=False, timeout=0)
    answers: list[dspy.Prediction | None] = run([(program, query) for query in queries])
    return answers


def score(program: IntentClassifier, rows: Sequence[Any], threads: int) -> Scores:
    """Score a program on rows with `text` and `label` with dspy.Evaluate; whatever is no label, or fails, is wrong."""
    evaluate = dspy.Evaluate(
        devset=[example(row) for row in rows], metric=metric, num_threads=threads, display_progress=True, max_errors=len(rows) + 1
    )
    results = [prediction for _, prediction, _ in evaluate(program).results]
    predicted = [prediction.get("label", UNKNOWN) for prediction in results]
    prompt_tokens, completion_tokens = tokens(results)
    return Scores(
        accuracy=sum(label == row["label"] for label, row in zip(predicted, rows, strict=True)) / len(rows),
        predicted=predicted,
        probabilities=[prediction.get("probabilities") or {} for prediction in results],
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def tokens(predictions: Sequence[dspy.Prediction | None]) -> tuple[int, int]:
    """Prompt and completion tokens of all predictions, as their engines reported them."""
    prompt = completion = 0
    for prediction in predictions:
        for usage in ((prediction.get_lm_usage() if prediction else None) or {}).values():
            prompt += usage.get("prompt_tokens") or 0
            completion += usage.get("completion_tokens") or 0
    return prompt, completion
