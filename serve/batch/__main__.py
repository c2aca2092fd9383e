"""Classify the rows of a CSV file, or of a folder of Parquet files on Ray, with the served pair, on its own engine or
engine.api_base.

python -m serve.batch in.csv out.csv [--text-column text]
python -m serve.batch --ray in/ out/ [--text-column text]

The output has the input's columns and label, confidence, abstained (and reasoning), in the input's order. A killed run
resumes where it stopped. On Ray there is a file of answers for each file, and `failure` says why a row has no label
(on_ray.py).
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from serve.batch.answers import AT_ONCE, ATTEMPTS, NO_LABEL, SLOWEST, answer
from serve.batch.rows import COLUMNS, check_target, read_texts
from serve.student import ServedStudent, load_served_student
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.process import running
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.engines.requests import NO_ANSWER, Failure
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import fingerprint, whole_file
from stages.parts.run.machine import end_on_sigterm
from stages.parts.run.params import load_params
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress


async def ask(client: CachingClient, student: ServedStudent, number: int, text: str) -> dict[str, Any]:
    if not text.strip():
        return NO_LABEL
    try:
        return await answer(client, student.classifier, text)
    except EngineError as error:
        if Failure.of(error).reason == NO_ANSWER:
            raise EngineError(f"row {number}: {error}") from None
        return NO_LABEL  # a text longer than the model's context, say, does not stop the others


async def classify(
    student: ServedStudent, texts: Sequence[str], store: AnswerStore, at_once: int, timeout_s: float
) -> list[dict[str, Any]]:
    """Answers in the order of the texts. Raises EngineError, in a group, with the row's number, from 1."""
    answers: list[dict[str, Any]] = []
    with Progress("classifying", len(texts)) as progress:

        def take(_: tuple[int, str], answer: dict[str, Any]) -> None:
            answers.append(answer)
            progress.update()

        async with engine_client(student.engine.served, timeout_s) as client:
            caching = CachingClient(client, RateLimit(at_once), store, attempts=ATTEMPTS)
            await caching.send(student.classifier.trial())
            await in_order(lambda row: ask(caching, student, *row), enumerate(texts, start=1), at_once, take)
    return answers


def batch(source: Path, to: Path, column: str) -> None:
    params = load_params()
    rows = read_texts(source, column)
    check_target(to)
    student = load_served_student(params)
    kept = cache() / "batch" / f"{fingerprint(json.dumps([list(rows[column]), student.classifier.request('')]))}.sqlite"
    with answer_store(kept, "another run is classifying the same rows") as store, running(student.engine):
        work = classify(student, list(rows[column]), store, AT_ONCE, SLOWEST * params.serve.timeout_s)
        try:
            answers = asyncio.run(work)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        found = pd.DataFrame(answers, columns=COLUMNS, index=rows.index)
        if found["reasoning"].isna().all():
            found = found.drop(columns="reasoning")
        with whole_file(to) as draft:
            pd.concat([rows, found], axis=1).to_csv(draft, index=False)
        store.remove()
    print(f"{len(rows)} rows in {to}, {sum(answer['abstained'] for answer in answers)} of them abstained")


def on_ray() -> Callable[[Path, Path, str], None]:
    """`batch` for folders; raises UserError where Ray is not installed."""
    try:
        from serve.batch import on_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "Ray is missing: .venv/bin/pip install --no-deps --require-hashes -r requirements-ray.lock"
        ) from None
    return on_ray.batch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.batch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", type=Path, metavar="in", help="a CSV file with a header, or a folder of Parquet files"
    )
    parser.add_argument(
        "to", type=Path, metavar="out", help="a file, or a folder of them: each written whole at its end, or not at all"
    )
    parser.add_argument("--text-column", default="text", help="the column that holds the queries (default: text)")
    parser.add_argument(
        "--ray", action="store_true", help="a folder, on the Ray of this machine or the cluster at RAY_ADDRESS"
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    end_on_sigterm()
    try:
        (on_ray() if given.ray else batch)(given.source, given.to, given.text_column)
    except UserError as error:
        sys.exit(f"serve.batch: {error}")
    except EngineError as error:
        sys.exit(f"serve.batch: {error}; what was answered is kept: run it again to go on")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
