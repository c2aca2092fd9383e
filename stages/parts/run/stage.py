"""How every stage runs: quiet libraries, errors in one line, and a note of the time and memory it took."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json
from stages.parts.run.params import load_params
from stages.parts.run.paths import TIMES, cache

SAMPLE_EVERY_S = 0.5
TRACKING_TIMEOUT_S = 180


class MemoryWatch(threading.Thread):
    """Samples the resident memory of this process and all its children; `peak` is in bytes.

    Shared pages count once for each process, so the figure errs on the high side.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._end = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._end.wait(SAMPLE_EVERY_S):
            total = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    total += member.memory_info().rss
                except psutil.Error:  # it ended between the listing and the reading
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self._end.set()
        self.join()
        return max(self.peak, psutil.Process().memory_info().rss)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` as a command, and note its time and memory in reports/times/STAGE.json.

    DVC does not track that file: an output that differs each time would make every stage behind it run again.
    """
    name = sys.modules[main.__module__].__spec__.name.rpartition(".")[2]  # type: ignore[union-attr]
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    watch = MemoryWatch()
    watch.start()
    started = time.monotonic()
    with command(name):
        main()
        seconds = time.monotonic() - started
        write_json(
            TIMES / f"{name}.json", {"seconds": round(seconds, 1), "peak_memory_mb": round(watch.stop() / 2**20)}
        )
        log_to_trackers(name)


def log_to_trackers(stage: str) -> None:
    """Log a finished stage to the trackers that params.yaml names, in a process of their own virtual environment.

    Never raises, so that tracking fails no run: a problem is one line on standard error.
    """
    try:
        settings = load_params().tracking
    except UserError:  # a stage that reads no parameters
        return
    if not (settings.mlflow or settings.wandb):
        return
    python = cache().parent / ".venv-tracking/bin/python"
    problem = ""
    try:
        line = [str(python), "-W", "ignore", "-m", "stages.parts.tracking", stage]
        done = subprocess.run(line, capture_output=True, text=True, timeout=TRACKING_TIMEOUT_S, check=False)
        if done.returncode:
            problem = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    except FileNotFoundError:
        problem = f"{python.parent.parent} is missing: make setup-tracking"
    except subprocess.TimeoutExpired:
        problem = f"no answer in {TRACKING_TIMEOUT_S} s"
    except OSError as error:
        problem = f"{python}: {error.strerror}"
    if problem:
        print(f"tracking: {stage} is not tracked: {problem[:300]}", file=sys.stderr)
