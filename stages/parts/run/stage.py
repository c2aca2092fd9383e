"""How every stage runs: quiet libraries, errors in one line, and a note of the time and memory it took."""

import logging
import sys
import threading
import time
from collections.abc import Callable

import psutil

from stages.parts.run.commands import command
from stages.parts.run.files import write_json
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
        tell_trackers(name)
