"""What a row is, and its stable id."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd
import pyarrow as pa

from stages.parts.run.errors import UserError
from stages.parts.run.files import fingerprint

EXTRA_PREFIX = "raw."  # of the user's other columns: their names can't clash with the pipeline's


class Row(TypedDict):
    """One text. `label` is absent if it is unknown (the pool). Other keys, `raw.NAME`, are the user's own columns.

    `teacher_label` is a label that a teacher gave before this run, `teacher_answer` a whole answer, as JSON: the run
    does not pay for them again.
    """

    id: str
    text: str
    label: NotRequired[str]
    teacher_label: NotRequired[str]
    teacher_answer: NotRequired[str]


class TeacherLabel(TypedDict):
    """A text with the label that the teacher gave it.

    `label` is a label's name if `valid`, otherwise the answer as it came. `confidence` is the probability of the label
    in [0, 1], or None if the teacher reports none; `probabilities` are those of the labels that it reports any for.
    """

    id: str
    text: str
    label: str
    reasoning: str
    valid: bool
    confidence: float | None
    probabilities: dict[str, float]


def read_rows(path: Path) -> pd.DataFrame:
    """Return the table that a stage wrote; raise UserError if it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, which makes it") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(f"{path} is not Parquet ({reason}): remove it and run `dvc repro`") from None


def row_id(text: str) -> str:
    """Return the stable id of a row: the first 16 hex digits of the text's sha256."""
    return fingerprint(text)


def extra_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's other columns of a row, as `raw.NAME`."""
    return {name: value for name, value in row.items() if name.startswith(EXTRA_PREFIX)}


def as_rows(rows: pd.DataFrame) -> Iterator[Any]:
    """Yield rows as dictionaries: id, text, the labels if there are such columns, and the user's other columns that
    hold a value.
    """
    names = [
        "id",
        "text",
        *(name for name in ("label", "teacher_label", "teacher_answer") if name in rows),
        *(name for name in rows if str(name).startswith(EXTRA_PREFIX)),
    ]
    for values in zip(*(rows[name].tolist() for name in names), strict=True):
        yield {name: value for name, value in zip(names, values, strict=True) if isinstance(value, str)}
