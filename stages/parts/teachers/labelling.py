"""Asking a teacher for the labels of many texts."""

from collections.abc import Sequence

import dspy

from stages.parts.data.rows import Query, TeacherLabel
from stages.parts.task.labels import UNKNOWN
from stages.parts.task.program import IntentClassifier


def answer_all(program: IntentClassifier, texts: Sequence[str], threads: int) -> list[dspy.Prediction | None]:
    """The program's predictions, in order; None for a query that kept failing after the LM's retries. Shows a progress bar."""
    queries = [dspy.Example(query=text).with_inputs("query") for text in texts]
    # No straggler time-out: it would ask a slow engine the same question again.
    run = dspy.Parallel(num_threads=threads, max_errors=len(queries) + 1, provide_traceback=False, timeout=0)
    answers: list[dspy.Prediction | None] = run([(program, query) for query in queries])
    return answers


def tokens(predictions: Sequence[dspy.Prediction | None]) -> tuple[int, int]:
    """Prompt and completion tokens of all predictions, as their engines reported them."""
    prompt = completion = 0
    for prediction in predictions:
        for usage in ((prediction.get_lm_usage() if prediction else None) or {}).values():
            prompt += usage.get("prompt_tokens") or 0
            completion += usage.get("completion_tokens") or 0
    return prompt, completion


def teacher_labels(rows: Sequence[Query], answers: Sequence[dspy.Prediction | None]) -> list[TeacherLabel]:
    """One record for each row; an unanswered query is an invalid one. Probabilities have four digits: the rest is rounding of the
    processor, and would make equal labels unequal files."""
    return [
        TeacherLabel(
            id=row["id"],
            text=row["text"],
            label=answer.label if answer else UNKNOWN,
            reasoning=answer.reasoning if answer else "",
            valid=bool(answer and answer.valid),
            confidence=round(answer.confidence, 4) if answer and answer.confidence is not None else None,
            probabilities={label: round(share, 4) for label, share in sorted(answer.probabilities.items())} if answer else {},
        )
        for row, answer in zip(rows, answers, strict=True)
    ]
