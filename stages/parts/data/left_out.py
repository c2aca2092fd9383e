"""Rows that would spoil the numbers: one text with two labels, and texts that are learned from and scored on.

Real corpora hold a few. They are left out and counted; more than a few are a mistake in the files, and stop the run.
"""

import pandas as pd

from stages.parts.data.tables import Faults
from stages.parts.task.text import readable

MOST_LEFT_OUT = 0.01  # of a file's rows


def leave_out(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return rows in which every text stands once, and how many were left out for what; raise UserError beyond 1 % of
    a file. Texts that models read as the same are one text: they differ in blanks, quotes, markers or invisible
    characters.

    `rows` have id, text, label, part and row. Of a text with two labels no labelled row stays. A text of the test rows
    stays there alone; a pool text that is labelled by hand stays in gold. Only the former two count towards the 1 %:
    repeated texts, and pool texts that are labelled already, are as common as harmless.
    """
    rows = rows.assign(read=[readable(text) for text in rows.text])
    labelled = rows.label.notna()
    names = rows[labelled].groupby("read").label.nunique()
    two_labels = labelled & rows.read.isin(names.index[names > 1])
    refuse_more_than_a_few(rows, two_labels, "has this text with another label, too: keep one label for it")
    rows = rows[~two_labels]

    in_test = rows.part.isin(("train", "gold")) & rows.read.isin(rows.read[rows.part == "test"])
    refuse_more_than_a_few(rows, in_test, "is a test text: drop it here or there")
    rows = rows[~in_test]

    with_label = rows.read[rows.part.isin(("gold", "test", "train"))]
    in_gold_or_test = rows.part.isin(("pool", "out_of_scope")) & rows.read.isin(with_label)
    rows = rows[~in_gold_or_test]
    repeated = rows.duplicated(["part", "read"])
    counts = {"two_labels": two_labels, "in_test": in_test, "in_gold_or_test": in_gold_or_test, "repeated": repeated}
    return rows[~repeated].drop(columns="read"), {name: int(mask.sum()) for name, mask in counts.items()}


def refuse_more_than_a_few(rows: pd.DataFrame, bad: pd.Series, what: str) -> None:
    """Raise UserError if more than 1 % of the rows of a part are bad."""
    for part, found in rows[bad].groupby("part"):
        of_part = int((rows.part == part).sum())
        if len(found) > MOST_LEFT_OUT * of_part:
            faults = Faults(f"the {part} file")
            share = f"{len(found)} of {of_part} rows; up to {MOST_LEFT_OUT:.0%} are left out and counted"
            for number in found.row:
                faults.add(int(number), f"{what} ({share})")
            faults.stop()
