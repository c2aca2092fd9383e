"""Progress of anything longer than a few seconds: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

EVERY_S = 10.0


class Progress:
    """Counts `total` units (None: unknown) of the task `name`, with an optional `note`. Writes to standard error."""

    def __init__(self, name: str, total: int | None = None, unit: str = "row", done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.count = self.first = done
        self.note = ""
        self.stream = sys.stderr  # a library that is kept quiet must not keep this quiet
        self.started = self.logged = time.monotonic()
        on_terminal = sys.stderr.isatty()
        form = None if total else "{desc} {elapsed}"
        self.bar = tqdm(desc=name, total=total, initial=done, unit=unit, bar_format=form) if on_terminal else None

    def update(self, more: int = 1, note: str | None = None) -> None:
        self.count += more
        self.note = note if note is not None else self.note
        if self.bar is not None:
            if note is not None:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(more)
        elif time.monotonic() - self.logged >= EVERY_S:
            self.log()

    def log(self) -> None:
        """Write the log's line."""
        self.logged = time.monotonic()
        seconds = self.logged - self.started
        parts = [f"{self.name}: {seconds:.0f} s"]
        if self.total:
            rate = (self.count - self.first) / max(seconds, 1e-9)
            left = f", {(self.total - self.count) / rate:.0f} s left" if rate else ""
            parts = [f"{self.name}: {self.count} of {self.total} {self.unit}s in {seconds:.0f} s{left}"]
        print(", ".join([*parts, self.note] if self.note else parts), file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.total and time.monotonic() - self.started >= EVERY_S:
            self.log()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
