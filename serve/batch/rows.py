"""A CSV file's rows, and where the answers to them go."""

import os
from pathlib import Path

import pandas as pd

from stages.parts.run.errors import UserError

COLUMNS = ["label", "confidence", "abstained", "reasoning"]


def read_texts(path: Path, column: str) -> pd.DataFrame:
    """The rows as they are, all columns text; raises UserError for what can't be classified."""
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(rows.index, pd.RangeIndex):  # pandas would take the first column for the rows' names
        raise UserError(f"{path} has rows with more fields than its header: put texts that hold commas in quotes")
    if column not in rows:
        raise UserError(
            f"{path} has no column {column!r}; it has {', '.join(rows.columns)}: name one with --text-column"
        )
    taken = [name for name in COLUMNS if name in rows]
    if taken:
        raise UserError(f"{path} has a column {taken[0]!r} already, which the output needs: rename it")
    return rows


def check_target(to: Path) -> None:
    """Raise UserError where the output could not be written, before hours of work and not after."""
    if to.is_dir() or not os.access(to.parent, os.W_OK):
        raise UserError(f"{to} can't be written: name a file in a folder that is there and yours")
