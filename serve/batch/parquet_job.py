"""Classify one Parquet file of many, again and again until it is done: what a worker of a large run does (on_ray.py).

Answers are stored in a file beside the output, from which a killed run goes on. A finished output says in its footer
what it was made of (the input's bytes, the served pair, the column), and its store goes: a file that is done costs one
look, and nobody holds the ids of all rows.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import uvloop

from serve.batch.answers import ATTEMPTS, MAX_IN_FLIGHT, RowClassifier
from serve.batch.parquet import AnsweredFile, open_file, read_summary
from serve.student import ENGINE_KEY
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, whole_file
from stages.parts.students.pair import Classifier

RELEASE_S = 30  # a killed run's workers end some seconds after it
STORES = ".answers"  # their folder, below the output's: hidden, so that readers of Parquet folders pass it by


@dataclass(frozen=True)
class Job:
    """What all files of a run share. `served` comes without its key, which the worker's environment has."""

    classifier: Classifier
    served: ServedModel
    timeout_s: float
    column: str
    source: Path
    to: Path

    def inputs_of(self, name: str) -> str:
        """Return a fingerprint of all that a file's answers depend on."""
        parts = [file_sha256(self.source / name), self.column, self.classifier.pair, self.classifier.request("")]
        return fingerprint(json.dumps(parts))


def classify_file(job: Job, name: str, report: Callable[[int], None]) -> dict[str, Any]:
    """Classify the file of that name, unless it is done; return how many `rows` it has, how many are `abstained`, and
    its `failures` by reason. `report` is called with the number of rows that were done since its last call.

    Raises UserError for a file that can't be classified, EngineError if the engine would refuse every row.
    """
    with open_file(job.source / name, job.column) as file, ExitStack() as stack:
        store = open_store(stack, job.to / STORES / f"{name}.sqlite", name)
        inputs, summary = job.inputs_of(name), read_summary(job.to / name)
        if summary is None or summary["made_of"] != inputs:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                try:
                    summary = runner.run(write_answers(job, name, file, store, inputs, report))
                except ExceptionGroup as group:
                    raise group.exceptions[0] from None
        else:
            report(summary["rows"])
        store.remove()
    return summary


def open_store(stack: ExitStack, path: Path, name: str) -> AnswerStore:
    """Open the store once no other process has it open; raises UserError if one keeps it."""
    end = time.monotonic() + RELEASE_S
    while True:
        try:
            return stack.enter_context(answer_store(path, f"another run is at work on {name}"))
        except UserError:
            if time.monotonic() > end:
                raise
        time.sleep(1)


async def write_answers(
    job: Job, name: str, file: pq.ParquetFile, store: AnswerStore, inputs: str, report: Callable[[int], None]
) -> dict[str, Any]:
    """Write the output of one file, whole or not at all; return its summary."""
    to = job.to / name
    failures: Counter[str] = Counter()
    rows = abstained = 0
    reasons = job.classifier.requests.program.style == "chain_of_thought"
    with (
        whole_file(to, fingerprint(json.dumps(name))) as draft,
        draft.open("wb") as output,
        AnsweredFile(job.source / name, file, job.column, output, with_reasons=reasons) as answered,
    ):

        def add(_: str | None, answer: dict[str, Any]) -> None:
            nonlocal rows, abstained
            rows += 1
            abstained += bool(answer["abstained"])
            if answer["failure"]:
                failures[answer["failure"].partition(":")[0]] += 1
            answered.add(answer)
            report(1)

        async with engine_client(replace(job.served, key=os.environ.get(ENGINE_KEY, "")), job.timeout_s) as client:
            caching = CachingClient(client, RateLimit(MAX_IN_FLIGHT), store, attempts=ATTEMPTS)
            row_classifier = RowClassifier(caching, job.classifier)
            await row_classifier.until_up()
            await in_order(row_classifier.classify_patiently, answered.texts(), MAX_IN_FLIGHT, add)
        summary = {"made_of": inputs, "rows": rows, "abstained": abstained, "failures": dict(failures)}
        answered.put_summary(summary)
    return summary
