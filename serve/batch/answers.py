"""Answers that are kept as they come, so that a killed run resumes where it stopped."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from stages.parts.run.errors import UserError


@contextmanager
def only_here(kept: Path) -> Iterator[TextIO]:
    """The file of kept answers, open to read and append; raises UserError where another run writes it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another run is classifying the same rows") from None
        yield file


def answers_so_far(file: TextIO) -> list[dict[str, Any]]:
    """What an earlier run kept, but for a last line that was cut short."""
    file.seek(0)
    text = file.read()
    whole = text[: text.rfind("\n") + 1]
    file.truncate(len(whole))  # JSON with escapes: a character is a byte
    return [json.loads(line) for line in whole.splitlines()]
