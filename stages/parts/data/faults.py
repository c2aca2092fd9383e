"""What is wrong with a source of rows, told at once: a user mends a file once, not once a run."""

from collections import Counter, defaultdict
from pathlib import Path

from stages.parts.run.errors import UserError

SHOWN = 5  # rows of a kind, and kinds


class Faults:
    """Collects the faults of one file, or of a split of a data set, by kind: how many rows, and the first of them."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.count: Counter[str] = Counter()
        self.first: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, row: int, what: str) -> None:
        """Note `what` is wrong with a row (1: the first below the header) and what to do about it."""
        self.count[what] += 1
        if len(self.first[what]) < SHOWN:
            self.first[what].append(row)

    def stop(self) -> None:
        """Raise UserError, one line, where there are any."""
        if not self.count:
            return
        kinds = [f"{named_rows(self.first[what], count)}: {what}" for what, count in self.count.most_common(SHOWN)]
        if len(self.count) > SHOWN:
            kinds.append(f"and {len(self.count) - SHOWN} kinds of fault more")
        raise UserError(f"{self.source}, " + "; ".join(kinds))


def named_rows(first: list[int], count: int) -> str:
    """`row 4`, or `rows 4, 9, 11, 12, 30 and 7 more`."""
    if count == 1:
        return f"row {first[0]}"
    shown = ", ".join(map(str, first))
    return f"rows {shown}" if count == len(first) else f"rows {shown} and {count - len(first)} more"
