"""Reading a file of texts as a table, and refusing what would spoil a run.

Not with `datasets`: it guesses types ("007" becomes 7, "NA" nothing), keeps a copy of every file in its cache, and
names no row of a bad file. Rows stream through one loop of checks into columns of Arrow strings, 0.1 GB for a million
short texts.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from stages.parts.data.rows import EXTRA_PREFIX
from stages.parts.run.errors import UserError
from stages.parts.run.files import csv_fault, iter_csv, json_text, open_bytes, open_text
from stages.parts.run.progress import Progress
from stages.parts.task.labels import UNKNOWN, clean_label, label_key
from stages.parts.task.text import normalized, readable

FORMATS = (".csv", ".jsonl", ".parquet")
MAX_TEXT = 20_000  # characters of a text; the service takes 4,000
ROWS_AT_ONCE = 50_000
SURROGATE = "holds half of a surrogate pair, which is no character: write the whole character or drop the row"
FAULTS_SHOWN = 5  # rows of a kind, and kinds

Record = Mapping[str, Any]


class Faults:
    """Collects the faults of one file, or of a split of a data set, by kind: how many rows, and the first of them."""

    def __init__(self, source: Path | str) -> None:
        self.source = source
        self.count: Counter[str] = Counter()
        self.first: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, row: int, what: str) -> None:
        """Note `what` is wrong with a row (1: the first below the header) and what to do about it."""
        self.count[what] += 1
        if len(self.first[what]) < FAULTS_SHOWN:
            self.first[what].append(row)

    def stop(self) -> None:
        """Raise UserError, in one line, if there are any."""
        if not self.count:
            return
        most = self.count.most_common(FAULTS_SHOWN)
        kinds = [f"{named_rows(self.first[what], count)}: {what}" for what, count in most]
        if len(self.count) > FAULTS_SHOWN:
            kinds.append(f"and {len(self.count) - FAULTS_SHOWN} kinds of fault more")
        raise UserError(f"{self.source}, " + "; ".join(kinds))


def named_rows(first: list[int], count: int) -> str:
    """`row 4`, or `rows 4, 9, 11, 12, 30 and 7 more`."""
    if count == 1:
        return f"row {first[0]}"
    shown = ", ".join(map(str, first))
    return f"rows {shown}" if count == len(first) else f"rows {shown} and {count - len(first)} more"


@dataclass(frozen=True)
class KnownLabels:
    """The clean names that a file's labels have to be among, the file that names them, and former names with theirs."""

    names: Collection[str]
    path: Path
    renamed: Mapping[str, str] = field(default_factory=dict)


def read_table(
    path: Path, text_column: str, label_column: str | None = None, known: KnownLabels | None = None
) -> pd.DataFrame:
    """Return the rows of a CSV, JSON lines or Parquet file as `checked` does; raise UserError with all faults."""
    faults = Faults(path)
    return checked(records(path, faults), faults, text_column, label_column, known)


def checked(
    stream: Iterator[tuple[int, Record]],
    faults: Faults,
    text_column: str,
    label_column: str | None,
    known: KnownLabels | None = None,
) -> pd.DataFrame:
    """Return numbered records as a table; raise UserError with all faults of their source, also those in `faults`.

    Columns: `row` (the number), `text` as written, `label` (clean) if a `label_column` is given, and the others as
    strings, named `raw.NAME`.
    """
    wanted = {"text": text_column} | ({"label": label_column} if label_column else {})
    tables, rows = [], 0
    with Progress(f"reading {faults.source}") as progress:
        while chunk := list(islice(stream, ROWS_AT_ONCE)):
            for name, column in wanted.items() if not rows else ():
                if column not in chunk[0][1]:
                    there = ", ".join(map(str, chunk[0][1]))
                    raise UserError(f"{faults.source} has no column {column!r} but {there}: set raw.{name}_column")
            for number, record in chunk:
                check_text(record.get(text_column), text_column, number, faults)
                check_others(record, wanted.values(), number, faults)
                if label_column:
                    check_label(record.get(label_column), label_column, known, number, faults)
            if not faults.count:
                tables.append(columns_of(chunk, text_column, label_column))
            rows += len(chunk)
            progress.update(len(chunk))
    faults.stop()
    if not rows:
        raise UserError(
            f"{faults.source} holds no rows: it needs a header with {' and '.join(wanted.values())}, and rows below it"
        )
    return pa.concat_tables(tables, promote_options="default").to_pandas()


def columns_of(chunk: list[tuple[int, Record]], text_column: str, label_column: str | None) -> pa.Table:
    """Return a chunk of checked records as a table of strings."""
    found: dict[str, Any] = {"row": pa.array([number for number, _ in chunk], pa.int32())}
    found["text"] = pa.array([record[text_column] for _, record in chunk], pa.large_string())
    if label_column:
        clean = {name: clean_label(name) for name in {record[label_column] for _, record in chunk}}
        found["label"] = pa.array([clean[record[label_column]] for _, record in chunk], pa.large_string())
    for name in dict.fromkeys(name for _, record in chunk for name in record):
        if name not in (text_column, label_column):
            values = [as_text(record.get(name)) for _, record in chunk]
            found[EXTRA_PREFIX + name] = pa.array(values, pa.large_string())
    return pa.table(found)


def as_text(value: Any) -> str | None:
    """Return a value of another column as text: what is nested as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json_text(value) if isinstance(value, dict | list) else str(value)
    except (TypeError, ValueError):  # nested dates or bytes, integers of more digits than Python writes
        return repr(value) if not isinstance(value, int) else hex(value)


def check_text(text: Any, column: str, row: int, faults: Faults) -> None:
    """Note what makes a value no text to classify."""
    if not isinstance(text, str):
        kind = "missing" if text is None else f"a {type(text).__name__}, not a string"
        faults.add(row, f"{column} is {kind}: write it as text or drop the row")
    elif has_surrogate(text):
        faults.add(row, f"{column} {SURROGATE}")
    elif not readable(text):
        nothing = "holds only characters that show nothing, or markers of prompts (zero-width, control, <|eot_id|>)"
        faults.add(row, f"{column} {nothing if text.strip() else 'is empty'}: fill it in or drop the row")
    elif len(text) > MAX_TEXT:
        faults.add(row, f"{column} is longer than {MAX_TEXT:,} characters: shorten it or drop the row")


def check_label(label: Any, column: str, known: KnownLabels | None, row: int, faults: Faults) -> None:
    """Note what makes a value no label of this task."""
    if not isinstance(label, str):
        kind = "missing" if label is None else f"a {type(label).__name__}, not a string"
        faults.add(row, f"{column} is {kind}: write a label's name or drop the row")
    elif fault := name_fault(label):
        faults.add(row, f"{column} {fault}")
    elif known and (name := clean_label(label)) not in known.names and name not in known.renamed:
        faults.add(row, f"{column} {label[:40]!r} is not in {known.path}: add it there or correct the row")


def check_others(record: Record, columns: Collection[str | None], row: int, faults: Faults) -> None:
    """Note what makes a value of another column unfit to be kept."""
    for name, value in record.items():
        if has_surrogate(name):
            faults.add(row, f"a column's name {SURROGATE}")
        if name not in columns and isinstance(value, str) and has_surrogate(value):
            faults.add(row, f"{name} {SURROGATE}")


def has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def name_fault(name: str) -> str:
    """Return what is wrong with a label's name, and what to do; nothing if it is well."""
    if not clean_label(name):
        return "is empty: fill it in or drop the row"
    if label_key(name) == label_key(UNKNOWN):
        return f"is {UNKNOWN!r}, which stands for answers without a label: call what no label fits none_of_these"
    if not name.isprintable():
        return f"{name[:40]!r} holds a line break or a control character: write the name on one line"
    if readable(name) != normalized(name):
        return f"{name[:40]!r} holds a marker of prompts, which no answer can: rename it"
    return ""


def refuse_alike(labels: Sequence[str]) -> None:
    """Raise UserError if two labels differ only in spelling that answers vary in: no answer could name one of them."""
    by_key: dict[str, str] = {}
    for label in labels:
        if (twin := by_key.setdefault(label_key(label), label)) != label:
            raise UserError(
                f"the labels {twin!r} and {label!r} differ only in spelling that a model's answers vary in (case, "
                "hyphens, quotes, brackets): make them one label, or rename one"
            )


def records(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """Yield row numbers, from 1, and the fields of a file; raise UserError if it can't be read on."""
    readers = {".csv": csv_records, ".jsonl": json_records, ".parquet": parquet_records}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is none of {', '.join(FORMATS)}: save it as one of them")
    try:
        yield from readers[path.suffix.lower()](path, faults)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check raw.folder, raw.train and raw.test") from None
    except UnicodeDecodeError:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if not is_utf8(line):
                    faults.add(number, "is not UTF-8 (lines counted from the top): save the file as UTF-8")


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def csv_records(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """Rows with more or fewer fields than the header are faults, and left out."""
    rows, number = iter_csv(path), 0
    try:
        header = next(rows)
        for number, fields in enumerate((row for row in rows if row), start=1):
            if len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
            else:
                faults.add(number, f"is not CSV of {len(header)} fields: quote texts that hold commas")
    except csv.Error as error:
        faults.add(number + 1, csv_fault(error))


def json_records(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """Lines that hold no JSON object, or one with a key twice, are faults, and left out."""
    with open_text(path, "utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line, object_pairs_hook=distinct_keys)
            # ValueError: also of integers with thousands of digits; RecursionError: of thousands of brackets
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:80]
                faults.add(number, f"is not JSON ({reason}): write one object a line")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                faults.add(number, f"is a JSON {type(record).__name__}, not an object: write one object a line")


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if it has a key twice, of which json.loads keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def parquet_records(path: Path, faults: Faults) -> Iterator[tuple[int, Record]]:
    """The rows of one file; of a column that is there twice only one would be left, so that such a file is refused."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: write its parts as one Parquet file")
    with open_bytes(path) as source:
        if not path.stat().st_size:
            return
        try:
            file = pa.parquet.ParquetFile(source)
            names = file.schema_arrow.names
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise UserError(f"{path} has the column {twice[0]!r} twice: rename one")
            batches = file.iter_batches(ROWS_AT_ONCE)
            yield from enumerate((record for batch in batches for record in batch.to_pylist()), start=1)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not Parquet ({str(error).splitlines()[0][:80]}): write it again") from None
        except (ValueError, OverflowError) as error:  # dates after the year 9999
            raise UserError(f"{path} holds a value that Python has no type for ({error}): write it as text") from None
