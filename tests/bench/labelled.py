"""Corpora with true labels, split like the stages filter and split do it, for benches that train no student."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stages.filter import most_frequent, rows_of
from stages.parts.data.left_out import leave_out
from stages.parts.data.tables import read_table
from stages.split import shuffled
from tests.conftest import BANKING77, ROOT


@dataclass(frozen=True)
class Labelled:
    """Rows with id, text and true label."""

    labels: list[str]
    gold: pd.DataFrame
    pool: pd.DataFrame
    test: pd.DataFrame


def folders() -> dict[str, Path]:
    """Return the folders of train.csv and test.csv, by corpus; Banking77 only if it is there."""
    return {"sample": ROOT / "data/sample"} | ({"banking77": BANKING77} if BANKING77.is_dir() else {})


def labelled(folder: Path, seed: int, labels_wanted: int = 25, gold: int = 100) -> Labelled:
    tables = {part: read_table(folder / f"{part}.csv", "text", "category") for part in ("train", "test")}
    labels = most_frequent(tables["train"].label, labels_wanted)
    rows, _ = leave_out(rows_of(pd.concat([table.assign(part=part) for part, table in tables.items()]), labels))
    train = shuffled(rows[rows.part == "train"], seed)
    return Labelled(labels, train[:gold], train[gold:], rows[rows.part == "test"])
