"""A CSV file, classified by one process on an engine."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.batch.answers import ATTEMPTS, MAX_IN_FLIGHT, PATIENCE, RowClassifier, resumable
from serve.batch.csv_file import COLUMNS, check_target, read_rows
from serve.student import ServedStudent, load_served_student
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.process import running
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.files import fingerprint, write_csv
from stages.parts.run.params import Params
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress


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


def classify_csv(params: Params, source: Path, to: Path, column: str) -> None:
    """Write a CSV file's rows with their answers; raises UserError. A killed run resumes."""
    header, *rows = read_rows(source, column)
    check_target(to)
    student = load_served_student(params)
    texts = [row[header.index(column)] for row in rows]
    kept = cache() / "batch" / f"{fingerprint(json.dumps([texts, student.classifier.request('')]))}.sqlite"
    with answer_store(kept, "another run is classifying the same rows") as store, running(student.engine):
        with resumable():
            answers = asyncio.run(classify_texts(student, texts, store, PATIENCE * params.serve.timeout_s))
        columns = [name for name in COLUMNS if name != "reasoning" or any(answer[name] for answer in answers)]
        added = ([answer[name] for name in columns] for answer in answers)
        write_csv(to, [*header, *columns], ([*row, *more] for row, more in zip(rows, added, strict=True)), kept.stem)
        store.remove()
    print(f"{len(rows)} rows in {to}, {sum(bool(answer['abstained']) for answer in answers)} of them abstained")
