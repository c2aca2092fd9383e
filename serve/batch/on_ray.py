"""Classify a folder of parquet files on Ray: a file of answers for each, made by as many workers as there are cores.

The rows of Ray's data set are the files' names. An actor, the worker, has one file at a time: it streams the texts from it, asks the
engine, and writes the answers in their order (one_file.py). Ray hands out a file where a worker is free, on whichever machine, and starts
a worker that died again, with the file it had. Texts never pass through Ray's object store, so memory does not depend on how many rows
there are; as blocks of texts (read_parquet, write_parquet) rows would lose their file and their order, and an unfinished block its
answers. Ray's own checkpoints are not used: they hold the ids of all rows in memory.
"""

import asyncio
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from serve.batch.one_file import Job, classify_file
from serve.batch.parquet import find_files, open_file
from serve.student import ENGINE_KEY, Student, load_student, pass_a_query
from serve.supervisor import Supervisor
from stages.parts.engines.client import EngineError, engine_client
from stages.parts.engines.process import EngineProcess
from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from stages.parts.run.progress import Progress

LOCAL = "local"
SLOWEST = 20  # times serve.timeout_s is how long an answer may take: all that are in flight wait for each other
OBJECT_STORE = 2**27  # bytes: names and counts alone pass through it
TELL_EVERY = 500  # rows


@ray.remote(num_cpus=0)
class Tally:
    """Rows that are done so far: a single file may take minutes."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, rows: int) -> None:
        self.rows += rows

    def total(self) -> int:
        return self.rows


class Worker:
    """Classifies one file at a time."""

    def __init__(self, job: Job, tally: Any) -> None:
        self.job = job
        self.tally = tally
        self.untold = 0

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        """A file's summary, or what is wrong; `fatal` where that holds for all files."""
        found: dict[str, Any] = {"summary": "", "wrong": "", "fatal": False}
        try:
            found["summary"] = json.dumps(classify_file(self.job, row["name"], self.tell))
        except UserError as error:
            found["wrong"] = str(error)
        except OSError as error:
            found["wrong"] = f"{row['name']}: {error}"
        except EngineError as error:
            found |= {"wrong": str(error), "fatal": True}
        self.tell(0, now=True)
        return found

    def tell(self, rows: int, now: bool = False) -> None:
        self.untold += rows
        if now or self.untold >= TELL_EVERY:
            self.tally.add.remote(self.untold)
            self.untold = 0


class Found:
    """What became of the files."""

    def __init__(self) -> None:
        self.files = self.rows = self.abstained = 0
        self.failures: Counter[str] = Counter()
        self.wrong: list[str] = []

    def take(self, row: dict[str, Any]) -> None:
        """Raises EngineError for what would become of all."""
        if row["fatal"]:
            raise EngineError(row["wrong"])
        self.files += 1
        if row["wrong"]:
            self.wrong.append(row["wrong"])
            return
        summary = json.loads(row["summary"])
        self.rows += summary["rows"]
        self.abstained += summary["abstained"]
        self.failures.update(summary["failures"])


def batch(source: Path, to: Path, column: str) -> None:
    """Raises UserError for what can't be done and for files that were left out, EngineError for an engine that is not there, or refuses."""
    source, to = source.resolve(), to.resolve()
    names = files_to_classify(source, to, column)
    params = load_params()
    address = os.environ.get("RAY_ADDRESS", LOCAL)
    if address != LOCAL and not params.engine.api_base:
        raise UserError("engine.api_base is empty: the workers of a cluster can't reach an engine that listens on this machine's loopback")
    student = load_student(params)
    os.environ |= {ENGINE_KEY: student.engine.served.key, "RAY_USAGE_STATS_ENABLED": "0"}
    job = Job(student.classifier, replace(student.engine.served, key=""), SLOWEST * params.serve.timeout_s, column, source, to)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that there are no bars
    own = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == LOCAL else {}))
        found = asyncio.run(run(student, job, names, params.serve.timeout_s))
    except RayError as error:
        raise UserError(f"Ray failed ({str(error).splitlines()[0]}): what was answered is kept, run it again to go on") from None
    finally:
        ray.shutdown()
    reasons = "".join(f", {count} {reason}" for reason, count in found.failures.most_common())
    print(f"{found.rows} rows of {found.files} files in {to}, {found.abstained} of them abstained{reasons}")
    if found.wrong:
        raise UserError(f"{len(found.wrong)} of {len(names)} files are left out, the others are done; the first: {found.wrong[0]}")


def files_to_classify(source: Path, to: Path, column: str) -> list[str]:
    """Their names; raises UserError for folders that will not do."""
    if to == source or source in to.parents:
        raise UserError(f"{to} is in {source}, whose files are read: name a folder outside it")
    names = find_files(source)
    if not names:
        raise UserError(f"{source} holds no .parquet files")
    open_file(source / names[0], column).close()
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{to} can't be written: {error.strerror}") from None
    return names


async def run(student: Student, job: Job, names: Sequence[str], timeout_s: float) -> Found:
    """Work through the files, with an eye on the engine: one of our own is started, and started again where it dies."""
    async with engine_client(student.engine.served, timeout_s) as client:
        supervisor = Supervisor(student.engine, lambda: pass_a_query(student, client))
        watching = asyncio.create_task(supervisor.run())
        try:
            await asyncio.wait([watching, asyncio.create_task(supervisor.was_ready.wait())], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            return await work_through(job, names)
        finally:
            watching.cancel()
            if isinstance(student.engine, EngineProcess):
                student.engine.stop()


async def work_through(job: Job, names: Sequence[str]) -> Found:
    found, tally, loop = Found(), Tally.remote(), asyncio.get_running_loop()  # type: ignore[attr-defined]
    over: asyncio.Future[None] = loop.create_future()
    files = data_set(job, names, tally)

    def take() -> None:
        try:
            for row in files.iter_rows():
                found.take(row)
        except Exception as error:
            loop.call_soon_threadsafe(over.set_exception, error)
        else:
            loop.call_soon_threadsafe(over.set_result, None)

    threading.Thread(target=take, daemon=True).start()
    with Progress("classifying", len(names), "file") as progress:
        while not over.done():
            await asyncio.wait([over], timeout=1)
            progress.update(found.files - progress.count, f"{await tally.total.remote()} rows")
    over.result()
    return found


def data_set(job: Job, names: Sequence[str], tally: Any) -> Dataset:
    """The files' names, one a block, through the workers."""
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # else half an hour in one file, or without an engine, ends the run
    workers = ActorPoolStrategy(size=min(len(names), max(1, int(ray.cluster_resources().get("CPU", 1)))), max_tasks_in_flight_per_actor=1)
    files = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    return files.map(Worker, fn_constructor_args=(job, tally), compute=workers, num_cpus=1)
