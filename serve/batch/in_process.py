"""A CSV file, classified by a student in this process: no engine, and memory does not grow with the rows.

Answers are stored a chunk of rows at a time, and the output is written once all are there: a killed run goes on after
its last chunk. A store is of one file, column and calibrated student, so it never mixes two students' answers.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serve.batch.csv_file import COLUMNS, NO_LABEL, check_target, read_rows
from stages.parts.run.answer_store import KEY_LENGTH, AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, write_csv
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress
from stages.parts.students.local import LocalClassifier

CHUNK = 2_000  # rows
ADDED = [name for name in COLUMNS if name != "reasoning"]


def row_chunks(source: Path, column: str) -> Iterator[list[list[str]]]:
    """Yield a file's rows, CHUNK at a time."""
    rows = itertools.islice(read_rows(source, column), 1, None)
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk


def answers_to(student: LocalClassifier, texts: Sequence[str]) -> list[list[Any]]:
    """Return the values of ADDED for each text."""
    shows_text = [bool(student.shown(text)) for text in texts]
    found = iter(student.classify([text for text, shows in zip(texts, shows_text, strict=True) if shows]))
    answers = (vars(next(found)) if shows else NO_LABEL for shows in shows_text)
    return [[answer[name] for name in ADDED] for answer in answers]


def stored_answers(store: AnswerStore, number: int) -> list[list[Any]] | None:
    """Return the answers to the chunk of that number, from 0; None if it has none yet."""
    record = store.get(f"{number:0{KEY_LENGTH}x}")
    return record["answers"] if record else None


def answer_chunks(student: LocalClassifier, source: Path, column: str, store: AnswerStore, rows: int) -> None:
    """Store the answers to all chunks, from the first that has none."""
    done = next(number for number in itertools.count() if stored_answers(store, number) is None)
    with Progress("classifying", rows, done=min(done * CHUNK, rows)) as progress:
        place = next(read_rows(source, column)).index(column)
        for number, chunk in enumerate(itertools.islice(row_chunks(source, column), done, None), start=done):
            store.put(f"{number:0{KEY_LENGTH}x}", {"answers": answers_to(student, [row[place] for row in chunk])})
            progress.update(len(chunk))


def classify_csv(student: LocalClassifier, source: Path, to: Path, column: str) -> None:
    """Write a CSV file's rows with their answers; raises UserError. A killed run resumes."""
    header = next(read_rows(source, column))
    rows = sum(len(chunk) for chunk in row_chunks(source, column))  # a row that will not do is found before the work
    check_target(to)
    made_of = file_sha256(source)
    kept = cache() / "batch" / f"{fingerprint(json.dumps([made_of, column, student.pair, CHUNK]))}.sqlite"
    written = abstained = 0
    with answer_store(kept, "another run is classifying the same rows") as store:
        answer_chunks(student, source, column, store, rows)

        def answered_rows() -> Iterator[list[Any]]:
            nonlocal written, abstained
            for number, chunk in enumerate(row_chunks(source, column)):
                for row, answer in zip(chunk, stored_answers(store, number) or (), strict=False):
                    written += 1
                    abstained += answer[-1] is not None
                    yield [*row, *answer]
            if written != rows or file_sha256(source) != made_of:
                store.remove()
                raise UserError(f"{source} has changed while it was classified: run it again")

        write_csv(to, [*header, *ADDED], answered_rows(), kept.stem)
        store.remove()
    print(f"{rows} rows in {to}, {abstained} of them abstained")
