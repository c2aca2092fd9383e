"""What a row is, and its stable id."""

import hashlib
from typing import NotRequired, TypedDict


class Query(TypedDict):
    """One support query. `label` is absent where it is unknown (the pool)."""

    id: str
    text: str
    label: NotRequired[str]


class TeacherLabel(TypedDict):
    """What the teacher made of one query.

    `label` is the answer as it came, matched to a label name where it could be; `valid` says whether it is one. `confidence` is the
    probability of the label in [0, 1], or None where the teacher reports none; `probabilities` are those of
    the labels that it reports any for.
    """

    id: str
    text: str
    label: str
    reasoning: str
    valid: bool
    confidence: float | None
    probabilities: dict[str, float]


def row_id(text: str) -> str:
    """The stable id of a row: the first 16 hex digits of the text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
