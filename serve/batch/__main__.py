"""Classify the rows of a CSV file with the served pair, on an engine of its own or the one at engine.api_base.

python -m serve.batch in.csv out.csv [--text-column text]

The output has the input's columns and label, confidence, abstained (and reasoning), in the input's order. A killed run
resumes where it stopped.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from serve.batch.rows import COLUMNS, check_target, read_texts
from serve.student import Student, load_student
from stages.parts.data.rows import row_id
from stages.parts.engines.asking import Asker, in_order
from stages.parts.engines.client import EngineError, QueryRefused, engine_client
from stages.parts.engines.pace import Pace
from stages.parts.engines.process import running
from stages.parts.run.append_log import AppendLog, append_log
from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_file
from stages.parts.run.params import load_params
from stages.parts.run.paths import cache
from stages.parts.run.processes import end_on_sigterm
from stages.parts.run.progress import Progress
from stages.parts.task.labels import UNKNOWN

AT_ONCE = 256  # rows in flight
ATTEMPTS = 3  # for a row: the engine is near, and an operator waits


async def ask(asker: Asker, student: Student, number: int, text: str) -> dict[str, Any]:
    try:
        answer = student.classifier.answer(await asker.complete(student.classifier.request(text)))
    except QueryRefused:  # longer than the model's context: no label, and no reason to stop the others
        return {"label": UNKNOWN, "confidence": 0.0, "abstained": True, "reasoning": None}
    except EngineError as error:
        raise EngineError(f"row {number}: {error}") from None
    return {name: getattr(answer, name) for name in COLUMNS}


async def classify(student: Student, texts: Sequence[str], log: AppendLog, at_once: int, timeout_s: float) -> list[dict[str, Any]]:
    """Answers in the order of the texts. Raises EngineError, in a group, with the row's number, from 1."""
    answers: list[dict[str, Any]] = []
    with Progress("classifying", len(texts)) as progress:

        def take(_: tuple[int, str], answer: dict[str, Any]) -> None:
            answers.append(answer)
            progress.update()

        async with engine_client(student.engine.served, timeout_s) as client:
            asker = Asker(client, Pace(at_once), log, attempts=ATTEMPTS)
            await in_order(lambda row: ask(asker, student, *row), enumerate(texts, start=1), at_once, take)
    return answers


def batch(source: Path, to: Path, column: str) -> None:
    params = load_params()
    rows = read_texts(source, column)
    check_target(to)
    student = load_student(params)
    kept = cache() / "batch" / f"{row_id(json.dumps([list(rows[column]), student.classifier.request('')]))}.jsonl"
    with append_log(kept, "another run is classifying the same rows") as log, running(student.engine):
        # All that are in flight may wait for each other.
        work = classify(student, list(rows[column]), log, AT_ONCE, params.serve.timeout_s * AT_ONCE)
        try:
            answers = asyncio.run(work)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        found = pd.DataFrame(answers, columns=COLUMNS, index=rows.index)
        if found["reasoning"].isna().all():
            found = found.drop(columns="reasoning")
        with whole_file(to) as draft:
            pd.concat([rows, found], axis=1).to_csv(draft, index=False)
        kept.unlink()
    print(f"{len(rows)} rows in {to}, {sum(answer['abstained'] for answer in answers)} of them abstained")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.batch", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="in.csv", help="a CSV file with a header")
    parser.add_argument("to", type=Path, metavar="out.csv", help="written whole at the end, or not at all")
    parser.add_argument("--text-column", default="text", help="the column that holds the queries (default: text)")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    end_on_sigterm()
    try:
        batch(given.source, given.to, given.text_column)
    except UserError as error:
        sys.exit(f"serve.batch: {error}")
    except EngineError as error:
        sys.exit(f"serve.batch: {error}; what was answered is kept: run it again to go on")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
