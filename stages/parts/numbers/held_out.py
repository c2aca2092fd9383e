"""What an in-process student says of rows that it has not learned: its confidence is calibrated on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_jsonl
from stages.parts.task.readings import TextReadings


class TextModel(Protocol):
    """A student in this process: texts in, probabilities of its `labels` and familiarity out."""

    @property
    def labels(self) -> Sequence[str]: ...

    def read(self, texts: Sequence[str]) -> TextReadings: ...


def record_held_out(student: TextModel, folder: Path, to: Path, learned: int) -> None:
    """Write a student's predictions of dev and gold rows, and print what it is: `learned` rows in `folder`.

    The student is read from its own files, as the service runs it: its confidence is calibrated on these predictions.
    """
    held_out = held_out_rows(student, read_jsonl(paths.SFT_DEV), read_jsonl(paths.GOLD))
    write_jsonl(to, held_out)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{learned} rows learned, {agreement(held_out):.1%} agreement with the teacher on dev, {size:.0f} MB")


def held_out_rows(student: TextModel, dev: Sequence[Any], gold: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each of dev and gold: its label, who gave it, with which confidence, and what the student reads:
    the probabilities, the most likely label first, and the familiarity, None if it knows none.
    """
    rows = [("teacher", row) for row in dev] + [("hand", row) for row in gold]
    read = student.read([row["text"] for _, row in rows])
    familiarity = [None] * len(rows) if read.familiarity is None else read.familiarity.tolist()
    return [
        {
            "id": row["id"],
            "label": row["label"],
            "by": by,
            "confidence": row.get("confidence"),
            "probabilities": {student.labels[place]: float(shares[place]) for place in np.argsort(-shares)},
            "familiarity": near,
        }
        for (by, row), shares, near in zip(rows, read.probabilities, familiarity, strict=True)
    ]


def agreement(held_out: Sequence[Any]) -> float:
    """Return the share of dev rows that a student labels as its teacher does."""
    of_dev = [next(iter(row["probabilities"])) == row["label"] for row in held_out if row["by"] == "teacher"]
    return sum(of_dev) / len(of_dev)
