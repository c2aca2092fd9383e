"""Parquet files: the texts that are in one, and the same rows with their answers in another, a batch of rows at a
time.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stages.parts.run.errors import UserError
from stages.parts.run.files import open_bytes

SUFFIXES = (".parquet", ".parq", ".pq")  # in any case
ROWS_AT_ONCE = 20_000
SUMMARY = b"classified"  # its key in the footer of a file that is done
ANSWER = pa.schema(
    {
        "label": pa.string(),
        "confidence": pa.float64(),
        "abstained": pa.string(),
        "reasoning": pa.string(),
        "failure": pa.string(),
    }
)


def find_files(folder: Path, to: Path) -> tuple[list[str], list[str]]:
    """Return the paths of all Parquet files below a folder, relative to it and sorted, and those of all other files.

    Links are followed. Hidden names are passed over, as are Spark's own that begin with _, and the folder `to`, in case
    a link leads there.
    """
    found: list[str] = []
    others: list[str] = []
    seen: set[Path] = {to.resolve()}
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        if here.resolve() in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in files:
            if not name.startswith((".", "_")):
                (found if name.lower().endswith(SUFFIXES) else others).append(str((here / name).relative_to(folder)))
    return sorted(found), sorted(others)


def printable(text: str) -> str:
    r"""Return a text that shows the bytes of a name that is not UTF-8 as \xe9: Ray and terminals refuse them."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


@contextmanager
def open_file(path: Path, column: str) -> Iterator[pq.ParquetFile]:
    """Open a file whose `column` holds texts; raises UserError if it can't be classified."""
    try:
        source = open_bytes(path)  # Arrow itself opens names in UTF-8 only
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    with source:
        try:
            file = pq.ParquetFile(source)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is not Parquet ({first_line(error)})") from None
        check_schema(path, file.schema_arrow, column)
        yield file


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def check_schema(path: Path, schema: pa.Schema, column: str) -> None:
    """Raise UserError unless a file has the column once, as text, and room for the answers."""
    if (count := schema.names.count(column)) != 1:
        has = f"{count} columns {column!r}" if count else f"no column {column!r}; it has {', '.join(schema.names)}"
        raise UserError(f"{path} has {has}: name one with --text-column")
    kind = schema.field(column).type
    if not is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise UserError(f"{path}: column {column!r} holds {kind}, not strings")
    if clashing := [name for name in ANSWER.names if name in schema.names]:
        raise UserError(f"{path} has a column {clashing[0]!r} already, which the output needs: rename it")


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def texts_of(column: pa.Array) -> list[str | None]:
    """Return a column's strings. Bytes that are no UTF-8, which Parquet allows, become replacement characters."""
    return [
        value if value is None else value.decode(errors="replace")
        for value in column.cast(pa.large_binary()).to_pylist()
    ]


class AnsweredFile:
    """The rows of one file, on their way into another: `texts` reads them, and `add` takes their answers in order; a
    batch is written with its last answer. Holds a batch or two. A context manager, which completes the new file.
    """

    def __init__(self, path: Path, file: pq.ParquetFile, column: str, to: IO[bytes], *, with_reasons: bool) -> None:
        self.path = path
        self.file = file
        self.column = column
        self.fields = [field for field in ANSWER if with_reasons or field.name != "reasoning"]
        self.schema = pa.schema([*file.schema_arrow, *self.fields], file.schema_arrow.metadata)
        self.writer = pq.ParquetWriter(to, self.schema, compression="zstd")
        self.waiting: deque[pa.RecordBatch] = deque()
        self.answers: list[Mapping[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def texts(self) -> Iterator[str | None]:
        """Yield the column's texts; raises UserError if the file is damaged."""
        try:
            for batch in self.file.iter_batches(ROWS_AT_ONCE):
                if batch.num_rows:
                    self.waiting.append(batch)
                    yield from texts_of(batch.column(self.column))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged ({first_line(error)})") from None

    def add(self, answer: Mapping[str, Any]) -> None:
        """Add the next row's answer, by the names of ANSWER."""
        self.answers.append(answer)
        if len(self.answers) == self.waiting[0].num_rows:
            found = [pa.array([answer[field.name] for answer in self.answers], field.type) for field in self.fields]
            self.writer.write_batch(
                pa.RecordBatch.from_arrays([*self.waiting.popleft().columns, *found], schema=self.schema)
            )
            self.answers = []

    def put_summary(self, summary: Mapping[str, Any]) -> None:
        """Put a summary into the footer."""
        self.writer.add_key_value_metadata({SUMMARY: json.dumps(summary).encode()})


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the summary of a file that is done; None if there is none. Raises UserError for what is no file."""
    try:
        with open_bytes(path) as file:
            metadata: dict[bytes, bytes] = pq.read_metadata(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    found: dict[str, Any] | None = json.loads(metadata[SUMMARY]) if SUMMARY in metadata else None
    return found
