"""Parquet files: the texts that are in one, and the same rows with their answers in another, a batch of rows at a
time.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stages.parts.run.errors import UserError

ROWS_AT_ONCE = 20_000
SUMMARY = b"classified"  # its key in the footer of a file that is done
ANSWER = pa.schema(
    {
        "label": pa.string(),
        "confidence": pa.float64(),
        "abstained": pa.bool_(),
        "reasoning": pa.string(),
        "failure": pa.string(),
    }
)


def find_files(folder: Path) -> list[str]:
    """The paths of all parquet files below a folder, relative to it, sorted; but for hidden ones, and Spark's own that
    begin with _.
    """
    found = (path.relative_to(folder) for path in folder.rglob("*.parquet"))
    return sorted(str(path) for path in found if not any(part.startswith((".", "_")) for part in path.parts))


def open_file(path: Path, column: str) -> pq.ParquetFile:
    """A file whose `column` holds texts; raises UserError where it can't be classified."""
    try:
        file = pq.ParquetFile(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise UserError(f"{path} is not Parquet ({str(error).splitlines()[0][:80]})") from None
    schema = file.schema_arrow
    if column not in schema.names:
        raise UserError(
            f"{path} has no column {column!r}; it has {', '.join(schema.names)}: name one with --text-column"
        )
    kind = schema.field(column).type
    if not is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise UserError(f"{path}: column {column!r} holds {kind}, not strings")
    if taken := [name for name in ANSWER.names if name in schema.names]:
        raise UserError(f"{path} has a column {taken[0]!r} already, which the output needs: rename it")
    return file


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def texts_of(column: pa.Array) -> list[str | None]:
    """Strings; bytes that are no UTF-8, which Parquet does not keep out, become replacement characters."""
    return [
        value if value is None else value.decode(errors="replace")
        for value in column.cast(pa.large_binary()).to_pylist()
    ]


class Answered:
    """The rows of one file, on their way into another: `texts` reads them, and a batch is written when `take` has its
    last answer. Holds a batch or two. A context manager, which completes the new file."""

    def __init__(self, path: Path, file: pq.ParquetFile, column: str, to: Path, *, with_reasons: bool) -> None:
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
        """The column's; raises UserError where the file is damaged."""
        try:
            for batch in self.file.iter_batches(ROWS_AT_ONCE):
                if batch.num_rows:
                    self.waiting.append(batch)
                    yield from texts_of(batch.column(self.column))
        except pa.ArrowException as error:
            raise UserError(f"{self.path} is damaged ({str(error).splitlines()[0][:80]})") from None

    def take(self, answer: Mapping[str, Any]) -> None:
        """The next row's answer, by the names of ANSWER."""
        self.answers.append(answer)
        if len(self.answers) == self.waiting[0].num_rows:
            found = [pa.array([answer[field.name] for answer in self.answers], field.type) for field in self.fields]
            self.writer.write_batch(
                pa.RecordBatch.from_arrays([*self.waiting.popleft().columns, *found], schema=self.schema)
            )
            self.answers = []

    def sum_up(self, summary: Mapping[str, Any]) -> None:
        """Put a summary into the footer."""
        self.writer.add_key_value_metadata({SUMMARY: json.dumps(summary).encode()})


def read_summary(path: Path) -> dict[str, Any] | None:
    """What was written of a file that is done; None where there is none."""
    try:
        metadata: dict[bytes, bytes] = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    found: dict[str, Any] | None = json.loads(metadata[SUMMARY]) if SUMMARY in metadata else None
    return found
