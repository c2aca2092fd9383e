"""A CSV file, classified by a student in this process: no engine, and memory does not grow with the rows.

Answers are stored a chunk of rows at a time, and the output is written once all are there: a killed run goes on after
its last chunk. A store is of one calibrated student, and its keys are the chunks' texts, so neither another student's
answers nor those of other rows are found in it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.batch.csv_file import COLUMNS, NO_LABEL, check_target, read_rows
from stages.parts.run.answer_store import KEY_LENGTH, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, write_csv
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress
from stages.parts.students.local import LocalClassifier

CHUNK = 2_000  # rows
ADDED = [name for name in COLUMNS if name != "reasoning"]


@dataclass(frozen=True)
class RowChunk:
    """Up to CHUNK rows of a file, the text of each, and the key that their answers have in a store."""

    rows: list[list[str]]
    texts: list[str]
    key: str


def row_chunks(source: Path, column: str) -> Iterator[RowChunk]:
    """Yield a file's rows in chunks; raises UserError for a row that will not do."""
    lines = read_rows(source, column)
    place = next(lines).index(column)
    while rows := list(itertools.islice(lines, CHUNK)):
        texts = [row[place] for row in rows]
        yield RowChunk(rows, texts, hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:KEY_LENGTH])


def answers_to(student: LocalClassifier, texts: Sequence[str]) -> list[list[Any]]:
    """Return the values of ADDED for each text."""
    shows_text = [bool(student.shown(text)) for text in texts]
    found = iter(student.classify([text for text, shows in zip(texts, shows_text, strict=True) if shows]))
    answers = (vars(next(found)) if shows else NO_LABEL for shows in shows_text)
    return [[answer[name] for name in ADDED] for answer in answers]


def classify_csv(student: LocalClassifier, source: Path, to: Path, column: str) -> None:
    """Write a CSV file's rows with their answers; raises UserError. A killed run resumes."""
    header = next(read_rows(source, column))
    rows = sum(len(chunk.rows) for chunk in row_chunks(source, column))  # a faulty row is found before the work
    check_target(to)
    kept = cache() / "batch" / f"{fingerprint(json.dumps([file_sha256(source), column, student.pair]))}.sqlite"
    written = abstained = 0
    with answer_store(kept, "another run is classifying the same rows") as store:
        done = sum(len(chunk.rows) for chunk in row_chunks(source, column) if store.get(chunk.key))
        with Progress("classifying", rows, done=done) as progress:
            for chunk in row_chunks(source, column):
                if not store.get(chunk.key):
                    store.put(chunk.key, {"answers": answers_to(student, chunk.texts)})
                    progress.update(len(chunk.rows))

        def answered_rows() -> Iterator[list[Any]]:
            nonlocal written, abstained
            for chunk in row_chunks(source, column):
                if not (found := store.get(chunk.key)):
                    store.remove()
                    raise UserError(f"{source} has changed while it was classified: run it again")
                for row, answer in zip(chunk.rows, found["answers"], strict=True):
                    written += 1
                    abstained += answer[-1] is not None
                    yield [*row, *answer]

        write_csv(to, [*header, *ADDED], answered_rows(), kept.stem)
        store.remove()
    print(f"{written} rows in {to}, {abstained} of them abstained")
