"""Classify a folder of parquet files on Ray: a file of answers for each, made by as many workers as there are cores.

The rows of Ray's data set are the files' names. An actor, the worker, has one file at a time: it streams the texts from
it, asks the engine, and writes the answers in their order (one_file.py). Ray hands out a file where a worker is free,
on whichever machine, and starts a worker that died again, with the file it had. Texts never pass through Ray's object
store, so memory does not depend on how many rows there are; as blocks of texts (read_parquet, write_parquet) rows would
lose their file and their order, and an unfinished block its answers. Ray's own checkpoints are not used: they hold the
ids of all rows in memory.
"""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from serve.batch.answers import SLOWEST
from serve.batch.one_file import Job, classify_file
from serve.batch.parquet import find_files, open_file
from serve.student import ENGINE_KEY, ServedStudent, load_served_student, pass_a_query
from serve.supervisor import Supervisor
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.process import EngineProcess
from stages.parts.run.errors import UserError
from stages.parts.run.machine import end_on_sigterm
from stages.parts.run.params import load_params
from stages.parts.run.progress import Progress

LOCAL = "local"
OBJECT_STORE = 2**27  # bytes: names and counts alone pass through it
TELL_EVERY = 500  # rows

logger = logging.getLogger("serve")


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
            logger.error("left out: %s", row["wrong"])
            return
        summary = json.loads(row["summary"])
        self.rows += summary["rows"]
        self.abstained += summary["abstained"]
        self.failures.update(summary["failures"])


def batch(source: Path, to: Path, column: str) -> None:
    """Raises UserError for what can't be done and for files that were left out, EngineError for an engine that is not
    there, or refuses.
    """
    source, to = source.resolve(), to.resolve()
    names = files_to_classify(source, to, column)
    params = load_params()
    address = os.environ.get("RAY_ADDRESS", LOCAL)
    if address != LOCAL and not params.engine.api_base:
        raise UserError(
            "engine.api_base is empty: the workers of a cluster can't reach an engine that listens on this "
            "machine's loopback"
        )
    student = load_served_student(params)
    os.environ |= {ENGINE_KEY: student.engine.served.key, "RAY_USAGE_STATS_ENABLED": "0"}
    job = Job(
        student.classifier, replace(student.engine.served, key=""), SLOWEST * params.serve.timeout_s, column, source, to
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that there are no bars
    own = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == LOCAL else {}))
        end_on_sigterm()  # again: Ray sets a handler of its own
        with watched(student, params.serve.timeout_s):
            found = work_through(job, names)
    except (RayError, ConnectionError) as error:
        raise UserError(
            f"Ray failed ({str(error).splitlines()[0]}): what was answered is kept, run it again to go on"
        ) from None
    finally:
        ray.shutdown()
    reasons = "".join(f", {count} {reason}" for reason, count in found.failures.most_common())
    print(f"{found.rows} rows of {found.files} files in {to}, {found.abstained} of them abstained{reasons}")
    if found.wrong:
        raise UserError(
            f"{len(found.wrong)} of {len(names)} files are left out, the others are done; the first: {found.wrong[0]}"
        )


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


def work_through(job: Job, names: Sequence[str]) -> Found:
    """Hand out the files. In the main thread, so that Ctrl-C ends Ray Data in good order."""
    found, tally = Found(), Tally.remote()  # type: ignore[attr-defined]
    with Progress("classifying", len(names), "file") as progress:

        def tick() -> None:
            progress.update(found.files - progress.count, f"{ray.get(tally.total.remote())} rows")

        with every_second(tick):
            for row in data_set(job, names, tally).iter_rows():
                found.take(row)
        tick()
    return found


@contextmanager
def watched(student: ServedStudent, timeout_s: float) -> Iterator[None]:
    """With an eye on the engine, from a thread: one of our own is started, and again where it dies. Raises UserError or
    EngineError where it never was there."""
    ready: Future[None] = Future()

    async def watch() -> None:
        try:
            async with engine_client(student.engine.served, timeout_s) as client, asyncio.TaskGroup() as group:
                supervisor = Supervisor(student.engine, lambda: pass_a_query(student, client))
                group.create_task(supervisor.run())
                await supervisor.was_ready.wait()
                ready.set_result(None)
        except ExceptionGroup as group:
            ready.set_exception(group.exceptions[0])
        finally:
            if isinstance(student.engine, EngineProcess):
                student.engine.stop()

    loop = asyncio.new_event_loop()
    watching = loop.create_task(watch())
    with ThreadPoolExecutor(1) as thread:
        over = thread.submit(loop.run_until_complete, watching)
        try:
            ready.result()
            yield
        finally:
            loop.call_soon_threadsafe(watching.cancel)
            with suppress(asyncio.CancelledError):
                over.result()


@contextmanager
def every_second(tick: Callable[[], None]) -> Iterator[None]:
    over = Event()

    def ticking() -> None:
        while not over.wait(1):
            tick()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(ticking)
        try:
            yield
        finally:
            over.set()


def data_set(job: Job, names: Sequence[str], tally: Any) -> Dataset:
    """The files' names, one a block, through the workers."""
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # else half an hour in one file, or without an engine, ends the run
    workers = ActorPoolStrategy(
        size=min(len(names), max(1, int(ray.cluster_resources().get("CPU", 1)))), max_tasks_in_flight_per_actor=1
    )
    files = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    return files.map(Worker, fn_constructor_args=(job, tally), compute=workers, num_cpus=1)
