"""A CSV file, classified by a student in this process: no engine, and memory does not grow with the rows."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from serve.batch.csv_file import COLUMNS, NO_LABEL, check_target, read_rows
from stages.parts.run.files import write_csv
from stages.parts.run.progress import Progress
from stages.parts.students.local import LocalClassifier

CHUNK = 2_000  # rows
ADDED = [name for name in COLUMNS if name != "reasoning"]


def answered_rows(student: LocalClassifier, rows: Iterator[list[str]], place: int) -> Iterator[list[Any]]:
    """Yield the rows with their answers; `place` is where in a row its text stands."""
    while chunk := list(islice(rows, CHUNK)):
        shows_text = [bool(student.shown(row[place])) for row in chunk]
        found = iter(student.classify([row[place] for row, shows in zip(chunk, shows_text, strict=True) if shows]))
        for row, shows in zip(chunk, shows_text, strict=True):
            answer = vars(next(found)) if shows else NO_LABEL
            yield [*row, *(answer[name] for name in ADDED)]


def classify_csv(student: LocalClassifier, source: Path, to: Path, column: str) -> None:
    """Write a CSV file's rows with their answers; raises UserError. A killed run starts anew."""
    count = sum(1 for _ in read_rows(source, column)) - 1  # a row that will not do is found before the work
    check_target(to)
    rows = read_rows(source, column)
    header = next(rows)
    abstained = 0
    with Progress("classifying", count) as progress:

        def counted() -> Iterator[list[Any]]:
            nonlocal abstained
            for row in answered_rows(student, rows, header.index(column)):
                abstained += row[-1] is not None
                progress.update()
                yield row

        write_csv(to, [*header, *ADDED], counted())
    print(f"{count} rows in {to}, {abstained} of them abstained")
