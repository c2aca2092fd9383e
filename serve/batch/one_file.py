"""Classify one parquet file of many, again and again until it is done: what a worker of a large run does (on_ray.py).

Answers are stored in a file beside the output, from which a killed run goes on. When the output is there, whole, its
footer says what it was made of (the input's bytes, the served pair, the column), and the store goes: a file that is
done costs one look, and nobody holds the ids of all rows.
"""

import asyncio
import glob
import itertools
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

from serve.batch.answers import AT_ONCE, ATTEMPTS, NO_LABEL, answer
from serve.batch.parquet import Answered, open_file, read_summary
from serve.student import ENGINE_KEY
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.http_client import EngineError, EngineRefuses, RequestRefused, engine_client
from stages.parts.engines.rate_limit import RateLimit, backoff_s
from stages.parts.engines.requests import NO_ANSWER, Failure
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, whole_file
from stages.parts.students.pair import Classifier

CHANCES = 3  # for a row that fails while others are answered: the engine may have died and come back in between
LET_GO_S = 30  # a killed run's workers end some seconds after it
STORES = ".answers"  # their folder, below the output's: hidden, so that readers of parquet folders pass it by


@dataclass(frozen=True)
class Job:
    """What all files of a run share. `served` comes without its key: that is in the environment of whoever asks."""

    classifier: Classifier
    served: ServedModel
    timeout_s: float
    column: str
    source: Path
    to: Path

    def made_of(self, name: str) -> str:
        """A name of all that a file's answers depend on."""
        return fingerprint(
            json.dumps(
                [file_sha256(self.source / name), self.column, self.classifier.pair, self.classifier.request("")]
            )
        )


def classify_file(job: Job, name: str, tell: Callable[[int], None]) -> dict[str, Any]:
    """How many `rows` the file of that name has, how many are `abstained`, and its `failures` by reason; `tell` hears
    of rows done.

    Raises UserError for a file that can't be classified, EngineError where the engine would refuse every row.
    """
    with open_file(job.source / name, job.column) as file, ExitStack() as stack:
        store = open_store(stack, job.to / STORES / f"{name}.sqlite", name)
        made_of, summary = job.made_of(name), read_summary(job.to / name)
        if summary is None or summary["made_of"] != made_of:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                try:
                    summary = runner.run(write_answers(job, name, file, store, made_of, tell))
                except ExceptionGroup as group:
                    raise group.exceptions[0] from None
        else:
            tell(summary["rows"])
        store.remove()
    return summary


def open_store(stack: ExitStack, path: Path, name: str) -> AnswerStore:
    """Return the store in a file, once no other process has it open; raises UserError if one keeps it."""
    end = time.monotonic() + LET_GO_S
    while True:
        try:
            return stack.enter_context(answer_store(path, f"another run is at work on {name}"))
        except UserError:
            if time.monotonic() > end:
                raise
        time.sleep(1)


async def write_answers(
    job: Job, name: str, file: pq.ParquetFile, store: AnswerStore, made_of: str, tell: Callable[[int], None]
) -> dict[str, Any]:
    to = job.to / name
    for draft in to.parent.glob(f".{glob.escape(to.name)}.*"):
        draft.unlink()  # of a killed run
    failures: Counter[str] = Counter()
    rows = abstained = 0
    reasons = job.classifier.requests.program.style == "chain_of_thought"
    with (
        whole_file(to) as draft,
        Answered(job.source / name, file, job.column, draft, with_reasons=reasons) as answered,
    ):

        def take(_: str | None, found: dict[str, Any]) -> None:
            nonlocal rows, abstained
            rows += 1
            abstained += found["abstained"]
            if found["failure"]:
                failures[found["failure"].partition(":")[0]] += 1
            answered.take(found)
            tell(1)

        async with engine_client(replace(job.served, key=os.environ.get(ENGINE_KEY, "")), job.timeout_s) as client:
            caching = CachingClient(client, RateLimit(AT_ONCE), store, attempts=ATTEMPTS)
            patient = Patient(caching, job.classifier)
            await patient.until_up()
            await in_order(patient.answer, answered.texts(), AT_ONCE, take)
        summary = {"made_of": made_of, "rows": rows, "abstained": abstained, "failures": dict(failures)}
        answered.sum_up(summary)
    return summary


class Patient:
    """Asks for rows, and waits while the engine is away."""

    def __init__(self, client: CachingClient, classifier: Classifier) -> None:
        self.client = client
        self.classifier = classifier
        self.waiting: asyncio.Task[None] | None = None

    async def answer(self, text: str | None) -> dict[str, Any]:
        """A row's COLUMNS, and the `failure` of one without a label: empty, too long, refused, or without an answer
        while others had one. Raises EngineRefuses."""
        if text is None or not text.strip():
            return {**NO_LABEL, "failure": "empty"}
        for _ in range(CHANCES):
            try:
                return {**await answer(self.client, self.classifier, text), "failure": None}
            except EngineError as error:
                failure = Failure.of(error)
            if failure.reason != NO_ANSWER:
                break
            await self.until_up()
        return {**NO_LABEL, "failure": f"{failure.reason}: {failure.message}"}

    async def until_up(self) -> None:
        """Wait until the engine answers a harmless query; all who wait share it."""
        if not self.waiting or self.waiting.done():
            self.waiting = asyncio.create_task(self.ask_until_up())
        await asyncio.shield(self.waiting)

    async def ask_until_up(self) -> None:
        for attempt in itertools.count():
            try:
                await self.client.send(self.classifier.trial())
                return
            except (EngineRefuses, RequestRefused):
                raise
            except EngineError:
                await asyncio.sleep(backoff_s(attempt))
