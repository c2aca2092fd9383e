"""Classify a folder of Parquet files on Ray: a file of answers for each, made by as many workers as there are cores.

The rows of Ray's data set are the files' names. An actor, the worker, has one file at a time: it streams the texts from
it, queries the engine, and writes the answers in their order (parquet_job.py). Ray hands a file to a free worker, on
whichever machine, and starts a worker that died again, with the file it had: for ever, if the file kills it. So a file
is left out after TRIES.

Texts never pass through Ray's object store, so memory does not depend on how many rows there are. As blocks of texts
(read_parquet, write_parquet) rows would lose their file and their order, and an unfinished block its answers. Ray's own
checkpoints are not used: they hold the ids of all rows in memory.
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
from urllib.parse import quote, unquote

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from serve.batch.answers import PATIENCE
from serve.batch.parquet import SUFFIXES, find_files, open_file, printable
from serve.batch.parquet_job import Job, classify_file
from serve.student import ENGINE_KEY, ServedStudent, check_engine, load_served_student
from serve.supervisor import Supervisor
from stages.parts.engines.http_client import EngineError, engine_client
from stages.parts.engines.process import EngineProcess
from stages.parts.run.errors import UserError
from stages.parts.run.machine import end_on_sigterm
from stages.parts.run.params import load_params
from stages.parts.run.progress import Progress

LOCAL = "local"
OBJECT_STORE = 2**27  # bytes: only names and counts pass through it
REPORT_EVERY = 500  # rows
TRIES = 2  # for a file whose worker dies: of the file, or of something else
SAMPLE = 100  # files that are opened before the engine starts, until one will do

logger = logging.getLogger("serve")


@ray.remote(num_cpus=0)
class Tally:
    """Counts the rows that are done, since a single file may take minutes, and the tries of the files at work."""

    def __init__(self) -> None:
        self.rows = 0
        self.tries: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Return how often a file was begun, this time included, and never ended."""
        self.tries[name] += 1
        return self.tries[name]

    def end(self, name: str) -> None:
        del self.tries[name]

    def add(self, rows: int) -> None:
        self.rows += rows

    def total(self) -> int:
        return self.rows


class Worker:
    """Classifies one file at a time."""

    def __init__(self, job: Job, tally: Any) -> None:
        self.job = job
        self.tally = tally
        self.unreported = 0

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        """Return a file's summary as JSON, or `wrong`: why it was left out; `fatal` if that holds for all files."""
        found: dict[str, Any] = {"summary": "", "wrong": "", "fatal": False}
        name = unquote(row["name"], errors="surrogateescape")
        try:
            if ray.get(self.tally.begin.remote(row["name"])) > TRIES:
                raise UserError(f"{name} ended its worker {TRIES} times: it may be damaged, or larger than the memory")
            found["summary"] = json.dumps(classify_file(self.job, name, self.report))
        except UserError as error:
            found["wrong"] = printable(str(error))
        except EngineError as error:
            found |= {"wrong": str(error), "fatal": True}
        except Exception as error:
            # Ray would start the worker again with this file, for ever, and the other files would wait for it
            found["wrong"] = printable(f"{name}: {type(error).__name__}: {error}")
        self.report(0, now=True)
        self.tally.end.remote(row["name"])
        return found

    def report(self, rows: int, now: bool = False) -> None:
        """Add rows to the tally, now and then."""
        self.unreported += rows
        if now or self.unreported >= REPORT_EVERY:
            self.tally.add.remote(self.unreported)
            self.unreported = 0


class Totals:
    """What became of the files."""

    def __init__(self) -> None:
        self.files = self.rows = self.abstained = 0
        self.failures: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one file's result; raises EngineError for a failure that holds for all files."""
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


def classify_folder(source: Path, to: Path, column: str) -> None:
    """Classify every file below a folder into one of the same path below `to`. Raises UserError for what can't be done
    and for files that were left out, EngineError for an engine that is not there, or refuses.
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
        student.classifier,
        replace(student.engine.served, key=""),
        PATIENCE * params.serve.timeout_s,
        column,
        source,
        to,
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that there are no bars
    own = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == LOCAL else {}))
        end_on_sigterm()  # again: Ray sets a handler of its own
        with watched(student, params.serve.timeout_s):
            totals = classify_files(job, names)
    except (RayError, ConnectionError) as error:
        raise UserError(
            f"Ray failed ({str(error).splitlines()[0]}): what was answered is kept, run it again to go on"
        ) from None
    finally:
        ray.shutdown()
    reasons = "".join(f", {count} {reason}" for reason, count in totals.failures.most_common())
    print(
        printable(f"{totals.rows} rows of {totals.files} files in {to}, {totals.abstained} of them abstained{reasons}")
    )
    if totals.wrong:
        raise UserError(
            f"{len(totals.wrong)} of {len(names)} files are left out, the others are done; the first: {totals.wrong[0]}"
        )


def files_to_classify(source: Path, to: Path, column: str) -> list[str]:
    """Return their names; raises UserError for folders that will not do, or if no file among the first will."""
    if to == source or source in to.parents:
        raise UserError(f"{to} is in {source}, whose files are read: name a folder outside it")
    names, others = find_files(source, to)
    if not names:
        raise UserError(f"{source} holds no {', '.join(SUFFIXES)} files")
    if others:
        logger.warning("passed over, not Parquet by name: %d files, the first: %s", len(others), printable(others[0]))
    first: UserError | None = None
    for name in names[:SAMPLE]:
        try:
            with open_file(source / name, column):
                break
        except UserError as error:
            first = first or error
    else:
        assert first
        raise UserError(printable(str(first)))  # most likely the column's name
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{to} can't be written: {error.strerror}") from None
    return names


def classify_files(job: Job, names: Sequence[str]) -> Totals:
    """Hand out the files. In the main thread, so that Ctrl-C ends Ray Data in good order."""
    totals, tally = Totals(), Tally.remote()  # type: ignore[attr-defined]
    with Progress("classifying", len(names), "file") as progress:

        def tick() -> None:
            progress.update(totals.files - progress.count, f"{ray.get(tally.total.remote())} rows")

        with every_second(tick):
            for row in data_set(job, names, tally).iter_rows():
                totals.add(row)
        tick()
    return totals


@contextmanager
def watched(student: ServedStudent, timeout_s: float) -> Iterator[None]:
    """Supervise the engine from a thread: one of our own is started, and started again if it dies. Raises UserError or
    EngineError if it was never ready.
    """
    ready: Future[None] = Future()

    async def watch() -> None:
        try:
            async with engine_client(student.engine.served, timeout_s) as client, asyncio.TaskGroup() as group:
                supervisor = Supervisor(student.engine, lambda: check_engine(student, client))
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
    """Return the results of the workers, a row a file; the files' names are its input, one a block."""
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # half an hour in one file, or without an engine, would end the run
    workers = ActorPoolStrategy(
        size=min(len(names), max(1, int(ray.cluster_resources().get("CPU", 1)))), max_tasks_in_flight_per_actor=1
    )
    # quoted, since Arrow's strings are UTF-8 and a file's name need not be
    rows = [{"name": quote(name, errors="surrogateescape")} for name in names]
    files = ray.data.from_items(rows, override_num_blocks=len(names))
    return files.map(Worker, fn_constructor_args=(job, tally), compute=workers, num_cpus=1)
