"""A CSV file: its rows as they are, and what is wrong with one that can't be classified.

Takes what an in-process student takes: no pandas, no engine.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from stages.parts.run.errors import UserError
from stages.parts.run.files import csv_fault, iter_csv
from stages.parts.task.labels import UNKNOWN

COLUMNS = ["label", "confidence", "abstained", "reasoning"]
NO_LABEL = {"label": UNKNOWN, "confidence": 0.0, "abstained": "unsure", "reasoning": None}


def read_rows(path: Path, column: str) -> Iterator[list[str]]:
    """Yield the header, then the rows, as they are; raises UserError for a file that can't be classified.

    `column` is the one that holds the texts. A blank line is a row of empty fields.
    """
    # Not with pandas: it renames columns that are there twice, and ends a row at a carriage return without quotes.
    try:
        lines = iter_csv(path)
        header = next(lines)
        check_header(path, header, column)
        yield header
        for number, fields in enumerate(lines, start=1):
            if len(fields) > len(header):
                raise UserError(
                    f"{path} has rows with more fields than its header, the first is row {number}: put texts that hold "
                    "commas in quotes"
                )
            yield fields + [""] * (len(header) - len(fields))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a CSV file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: a row {csv_fault(error)}") from None


def check_header(path: Path, header: list[str], column: str) -> None:
    """Raise UserError if the texts' column is missing, or an output column is there already."""
    if not header:
        raise UserError(f"{path} is not a CSV file in UTF-8: it is empty")
    if column not in header:
        raise UserError(f"{path} has no column {column!r}; it has {', '.join(header)}: name one with --text-column")
    clashing = [name for name in COLUMNS if name in header]
    if clashing:
        raise UserError(f"{path} has a column {clashing[0]!r} already, which the output needs: rename it")


def check_target(to: Path) -> None:
    """Raise UserError if the output could not be written: before hours of work, not after."""
    if (to.exists() and not to.is_file()) or not os.access(to.parent, os.W_OK):
        raise UserError(f"{to} can't be written: name a file in a folder that is there and yours")
