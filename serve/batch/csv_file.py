"""A CSV file: its rows, their answers by one process, and where these go."""

import asyncio
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from serve.batch.answers import ATTEMPTS, COLUMNS, MAX_IN_FLIGHT, PATIENCE, RowClassifier
from serve.student import ServedStudent, load_served_student
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.process import running
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import csv_fault, fingerprint, iter_csv, write_csv
from stages.parts.run.params import load_params
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress


def read_rows(path: Path, column: str) -> pd.DataFrame:
    """Read the rows as they are, all columns as text; raises UserError for a file that can't be classified."""
    # Not with pandas: it renames columns that are there twice, and ends a row at a carriage return without quotes.
    read: list[list[str]] = []
    try:
        header, *read = iter_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a CSV file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: a row {csv_fault(error)}") from None
    if not header:
        raise UserError(f"{path} is not a CSV file in UTF-8: it is empty")
    for number, fields in enumerate(read, start=1):
        if len(fields) > len(header):
            raise UserError(
                f"{path} has rows with more fields than its header, the first is row {number}: put texts that hold "
                "commas in quotes"
            )
        fields += [""] * (len(header) - len(fields))
    rows = pd.DataFrame(read, columns=header, dtype=str)
    if column not in rows:
        raise UserError(
            f"{path} has no column {column!r}; it has {', '.join(rows.columns)}: name one with --text-column"
        )
    clashing = [name for name in COLUMNS if name in rows]
    if clashing:
        raise UserError(f"{path} has a column {clashing[0]!r} already, which the output needs: rename it")
    return rows


def check_target(to: Path) -> None:
    """Raise UserError if the output could not be written: before hours of work, not after."""
    if (to.exists() and not to.is_file()) or not os.access(to.parent, os.W_OK):
        raise UserError(f"{to} can't be written: name a file in a folder that is there and yours")


async def classify_texts(
    student: ServedStudent, texts: Sequence[str], store: AnswerStore, timeout_s: float
) -> list[dict[str, Any]]:
    """Return the answers in the order of the texts. Raises EngineError, in a group, with the row's number from 1."""
    answers: list[dict[str, Any]] = []
    with Progress("classifying", len(texts)) as progress:

        def add(_: tuple[int, str], answer: dict[str, Any]) -> None:
            answers.append(answer)
            progress.update()

        async with engine_client(student.engine.served, timeout_s) as client:
            caching = CachingClient(client, RateLimit(MAX_IN_FLIGHT), store, attempts=ATTEMPTS)
            row_classifier = RowClassifier(caching, student.classifier)

            async def classify(row: tuple[int, str]) -> dict[str, Any]:
                number, text = row
                try:
                    return await row_classifier.classify(text)
                except EngineError as error:
                    raise EngineError(f"row {number}: {error}") from None

            await caching.send(student.classifier.trial())  # an engine that refuses all says so here, without a row
            await in_order(classify, enumerate(texts, start=1), MAX_IN_FLIGHT, add)
    return answers


def classify_csv(source: Path, to: Path, column: str) -> None:
    """Write a CSV file's rows with their answers; raises UserError and EngineError. A killed run resumes."""
    params = load_params()
    rows = read_rows(source, column)
    check_target(to)
    student = load_served_student(params)
    kept = cache() / "batch" / f"{fingerprint(json.dumps([list(rows[column]), student.classifier.request('')]))}.sqlite"
    with answer_store(kept, "another run is classifying the same rows") as store, running(student.engine):
        work = classify_texts(student, list(rows[column]), store, PATIENCE * params.serve.timeout_s)
        try:
            answers = asyncio.run(work)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        found = pd.DataFrame(answers, columns=COLUMNS, index=rows.index)
        if found["reasoning"].isna().all():
            found = found.drop(columns="reasoning")
        answered = pd.concat([rows, found], axis=1)
        write_csv(to, answered.columns, answered.itertuples(index=False))
        store.remove()
    print(f"{len(rows)} rows in {to}, {sum(bool(answer['abstained']) for answer in answers)} of them abstained")
