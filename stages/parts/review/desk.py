"""A review in progress: which row is next, what was decided, and how long the rest will take."""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from stages.parts.data.decisions import Decision, add_decisions, take_back
from stages.parts.data.rows import extra_columns
from stages.parts.review.queue import Doubt
from stages.parts.run.errors import UserError
from stages.parts.run.provenance import now

BREAK_S = 120  # a decision that took longer was a break
RECENT = 20  # decisions that the time left is estimated from
GUESSES = 9  # labels with a digit as their key


class Desk:
    """The rows of a queue, one at a time. Each decision is on the disk before the next row is shown.

    A skipped row comes back after all others. What was decided or skipped can be undone, the last first.
    """

    def __init__(self, queue: Sequence[Doubt], labels: Sequence[str], path: Path) -> None:
        self.waiting = deque(queue)
        self.labels = list(labels)
        self.path = path
        self.done: list[tuple[Doubt, Decision | None]] = []  # None: skipped
        self.seconds: deque[float] = deque(maxlen=RECENT)
        self.shown = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return what the page shows: the row, its most likely labels, how many are done, and the seconds that the
        others will take (or None).
        """
        left = len(self.waiting)
        return {
            "row": self.shown_row(self.waiting[0]) if left else None,
            "decided": sum(decision is not None for _, decision in self.done),
            "left": left,
            "seconds_left": round(left * median(self.seconds)) if self.seconds else None,
            "undo": bool(self.done),
        }

    def shown_row(self, doubt: Doubt) -> dict[str, Any]:
        row = doubt.row
        by_probability = sorted(row["probabilities"], key=lambda label: -row["probabilities"][label])
        guesses = [
            label for label in dict.fromkeys([row["label"], doubt.linear, *by_probability]) if label in self.labels
        ]
        return {
            **{name: row[name] for name in ("id", "text", "label", "reasoning", "confidence")},
            "own": extra_columns(row),
            "linear": doubt.linear,
            "guesses": guesses[:GUESSES],
        }

    def decide(self, row_id: str, label: str) -> None:
        """Write a label for the row `row_id`; raise UserError if another row is shown, or the label is none."""
        doubt = self.current(row_id)
        if label not in self.labels:
            raise UserError(f"{label!r} is none of the {len(self.labels)} labels")
        decision = Decision(row_id, label, doubt.row["label"], now())
        add_decisions(self.path, [decision])
        self.seconds.append(min(time.monotonic() - self.shown, BREAK_S))
        self.waiting.popleft()
        self.done.append((doubt, decision))
        self.shown = time.monotonic()

    def skip(self, row_id: str) -> None:
        """Move the row that is shown behind all others."""
        doubt = self.current(row_id)
        self.waiting.rotate(-1)
        self.done.append((doubt, None))
        self.shown = time.monotonic()

    def undo(self) -> None:
        """Show the last row again, without its decision."""
        if not self.done:
            raise UserError("there is nothing to undo")
        doubt, decision = self.done[-1]
        if decision is None:
            self.waiting.remove(doubt)
        else:
            take_back(self.path, decision)
        self.waiting.appendleft(doubt)
        self.done.pop()
        self.shown = time.monotonic()

    def current(self, row_id: str) -> Doubt:
        if not self.waiting or self.waiting[0].row["id"] != row_id:
            raise UserError("another row is shown by now: load the page again")
        return self.waiting[0]
