"""How every stage runs: quiet libraries, one line for what the user can mend, and a note of the time and memory it
took.
"""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json
from stages.parts.run.machine import end_on_sigterm
from stages.parts.run.paths import TIMES
from stages.parts.run.tracked import tell_trackers

SAMPLE_EVERY_S = 0.5


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


def way_back() -> str:
    """What a failed `dvc exp run -S ...` leaves behind: DVC writes the changes into params.yaml and does not take them
    back.
    """
    in_workspace = Path(os.environ.get("DVC_ROOT", "")).resolve() == Path.cwd()
    if "DVC_EXP_NAME" not in os.environ or not in_workspace:
        return ""
    return " (params.yaml keeps the changes of this run: `git checkout HEAD -- params.yaml dvc.lock` goes back)"


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 with one line on what the user can mend.

    Time and memory go to reports/times/STAGE.json, where DVC does not look: as outputs they would make every run
    another one.
    """
    name = sys.modules[main.__module__].__spec__.name.rpartition(".")[2]  # type: ignore[union-attr]
    end_on_sigterm()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    watch = MemoryWatch()
    watch.start()
    started = time.monotonic()
    try:
        main()
        seconds = time.monotonic() - started
        write_json(
            TIMES / f"{name}.json", {"seconds": round(seconds, 1), "peak_memory_mb": round(watch.stop() / 2**20)}
        )
        tell_trackers(name)
    except UserError as error:
        sys.exit(f"{name}: {error}{way_back()}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(
            f"{name}: the disk is full (while writing {error.filename or 'a file'}): free some space and run `dvc "
            f"repro` again"
        )
