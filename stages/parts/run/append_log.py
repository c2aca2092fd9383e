"""Records that must survive whatever ends a run, because they cost money or time: one file, appended to and never
rewritten.

The contract: a record is in the file before `put` returns, so that a killed process loses none (`kill -9` included; a
power cut may take the last seconds', which were not yet on the disk). A last line that was cut short is dropped when
the file is opened next, a full disk leaves none behind, and a second run that opens the file is refused. Reading is by
key; the last record of a key counts.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stages.parts.run.errors import UserError
from stages.parts.run.key_places import KeyPlaces

START = b'{"key": "'
KEY_LENGTH = 32  # hex digits
READ_AT_ONCE = 8192  # bytes


class AppendLog:
    """Records by key (32 hex digits) in an open file. Holds 24 to 48 bytes of memory a record: where it is, not what it
    says.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.places = KeyPlaces()
        self.end = 0
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                break  # cut short
            if line.startswith(START) and line.endswith(b"}\n"):
                self.places.put(int(line[len(START) : len(START) + 16], 16), self.end)
            self.end += len(line)
        file.truncate(self.end)

    def get(self, key: str) -> dict[str, Any] | None:
        """The last record of a key, or None."""
        place = self.places.get(short(key))
        if place is None:
            return None
        try:
            record: dict[str, Any] = json.loads(self.line_at(place))
        except ValueError:  # a damaged line
            return None
        return record if record["key"] == key else None

    def records(self) -> list[dict[str, Any]]:
        """The last record of every key; for small logs."""
        return [json.loads(self.line_at(place)) for place in self.places.places()]

    def line_at(self, place: int) -> bytes:
        """The line that begins at a place. Past the file's own buffer: `put` moves the descriptor behind its back."""
        line = b""
        while chunk := os.pread(self.file.fileno(), READ_AT_ONCE, place + len(line)):
            head, end, _ = chunk.partition(b"\n")
            line += head
            if end:
                break
        return line

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Append a record; raises OSError, and leaves no half line, where the disk is full."""
        line = json.dumps({"key": key, **record}).encode() + b"\n"
        try:
            written = os.write(self.file.fileno(), line)
            while written < len(line):
                written += os.write(self.file.fileno(), line[written:])
        except OSError:
            self.file.truncate(self.end)
            raise
        self.places.put(short(key), self.end)
        self.end += len(line)

    def first_use(self, key: str) -> bool:
        """Whether this is the first call for a key that has a record: for what is counted once, however often it is
        read.
        """
        return self.places.mark(short(key))


def short(key: str) -> int:
    """64 bits of a key, which take less memory than all; `get` compares the rest."""
    return int(key[:16], 16)


@contextmanager
def append_log(path: Path, busy: str) -> Iterator[AppendLog]:
    """The log in a file, made where there is none; raises UserError with `busy` where another run has it open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        yield AppendLog(file)
