"""Reading rows, and what is refused at the door. Rows are (text, label name) pairs, as written in the source."""

import csv
from collections import defaultdict
from pathlib import Path

import pandas as pd

from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_file
from stages.parts.task.labels import clean_label

Rows = list[tuple[str, str]]


def read_csv(path: Path, text_column: str, label_column: str) -> Rows:
    """Rows of a UTF-8 CSV file with a header line; raises UserError for whatever makes it unusable, naming the line."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: set raw.train and raw.test to your CSV files") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty: it needs a header line and rows") from None
    except pd.errors.ParserError as error:
        raise UserError(f"{path} is not CSV: {' '.join(str(error).split())}") from None
    for param, column in (("text_column", text_column), ("label_column", label_column)):
        if column not in table.columns:
            raise UserError(f"{path} has no column {column!r} but {', '.join(map(str, table.columns))}: set raw.{param}")
    if table.empty:
        raise UserError(f"{path} has a header but no rows")
    rows = [(str(text), str(label)) for text, label in zip(table[text_column], table[label_column], strict=True)]
    for number, (text, label) in enumerate(rows, start=1):
        for column, value in ((text_column, text), (label_column, label)):
            if not value.strip():
                raise UserError(f"{path}, row {number}: {column} is empty: fill it in or drop the row")
    return rows


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows under the header `text,category`."""
    with whole_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "category"])
        writer.writerows(rows)


def check(train: Rows, test: Rows) -> None:
    """Refuse one text under two labels, a text of the test set among the training rows, and labels that only the test set has."""
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for text, label in [*train, *test]:
        labels_of[text].add(clean_label(label))
    for text, labels in labels_of.items():
        if len(labels) > 1:
            raise UserError(f"one text has the labels {' and '.join(sorted(labels))}: {text[:80]!r}: keep one")
    leaked = {text for text, _ in train} & {text for text, _ in test}
    if leaked:
        raise UserError(
            f"{len(leaked)} test texts are also training rows, {min(leaked)[:80]!r} among them: drop them from one of the files"
        )
    unseen = {clean_label(label) for _, label in test} - {clean_label(label) for _, label in train}
    if unseen:
        raise UserError(f"labels without a training row: {', '.join(sorted(unseen)[:5])}: add rows or drop them from the test file")
