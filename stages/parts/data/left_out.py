"""Rows that would spoil the numbers: one text under two labels, and texts that are learned from and scored on.

Real corpora hold a few. They are left out and counted; more than a few are a mistake in the files, and stop the run.
"""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from stages.parts.data.faults import Faults
from stages.parts.run.progress import Progress

MOST_LEFT_OUT = 0.01  # of a file's rows
WORD = re.compile(r"\w+")


def leave_out(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows in which every text stands once, and how many were left out for what; raises UserError beyond 1 % of a file.

    `rows` have id, text, label, part and row. Of a text under two labels no labelled row stays. A text of the test rows
    stays there alone; a pool text that is labelled by hand stays in gold. Only the former two count towards the 1 %:
    repeated texts, and pool texts that are labelled already, are as common as harmless.
    """
    labelled = rows.label.notna()
    names = rows[labelled].groupby("id").label.nunique()
    two_labels = labelled & rows.id.isin(names.index[names > 1])
    stop_beyond_a_few(rows, two_labels, "has this text under another label, too: keep one label for it")
    rows = rows[~two_labels]

    in_test = rows.part.isin(("train", "gold")) & rows.id.isin(rows.id[rows.part == "test"])
    stop_beyond_a_few(rows, in_test, "is a test text: drop it here or there")
    rows = rows[~in_test]

    in_gold_or_test = rows.part.isin(("pool", "outside")) & rows.id.isin(
        rows.id[rows.part.isin(("gold", "test", "train"))]
    )
    rows = rows[~in_gold_or_test]
    repeated = rows.duplicated(["part", "id"])
    counts = {"two_labels": two_labels, "in_test": in_test, "in_gold_or_test": in_gold_or_test, "repeated": repeated}
    return rows[~repeated], {name: int(mask.sum()) for name, mask in counts.items()}


def stop_beyond_a_few(rows: pd.DataFrame, bad: pd.Series, what: str) -> None:
    """Raise UserError where a part has more than 1 % of bad rows."""
    for part, found in rows[bad].groupby("part"):
        of_part = int((rows.part == part).sum())
        if len(found) > MOST_LEFT_OUT * of_part:
            faults = Faults(f"the {part} file")
            for number in found.row:
                faults.add(
                    int(number),
                    f"{what} ({len(found)} of {of_part} rows; up to {MOST_LEFT_OUT:.0%} are left out and counted)",
                )
            faults.stop()


def fingerprint(text: str) -> str:
    """The same for texts of the same words, whatever their order, case and punctuation (OpenRefine's key collision)."""
    return " ".join(sorted(set(WORD.findall(text.lower()))))


def near_duplicates(pool: Sequence[str], by_hand: Iterable[str]) -> int:
    """How many pool texts have the words of a text labelled by hand."""
    known, found = {fingerprint(text) for text in by_hand}, 0
    with Progress("looking for near-duplicates", len(pool)) as progress:
        for text in pool:
            found += fingerprint(text) in known
            progress.update()
    return found
