"""The rows that a teacher is asked about. They stay in their files, so that a pool of any length takes no memory."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from stages.parts.data.rows import Row
from stages.parts.run.files import iter_jsonl


class RowSource(Protocol):
    """Rows that can be counted, and gone through as often as one likes: a list, or what is below."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


class StoredRows:
    """The rows of a file of JSON lines; raises UserError where it is not there, or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = sum(1 for _ in iter_jsonl(path))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return iter_jsonl(self.path)


class JoinedRows:
    """The rows of several parts, one after the other."""

    def __init__(self, *parts: RowSource) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


def at_places(rows: RowSource, wanted: set[int]) -> list[Row]:
    """The rows at these places, in their order."""
    return [row for place, row in enumerate(rows) if place in wanted]
