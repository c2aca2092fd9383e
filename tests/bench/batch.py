"""How fast whole files are classified, on Ray and on the plain path, and what memory that takes. `make bench-batch`

python -m tests.bench.batch [--rows 20000 200000] [--latency-ms 250] [--out reports/bench/batch.json]

The real commands, against the stub engine, which runs on the same cores and answers as vLLM does for 25 labels. Files
have 10,000 rows of the sample corpus, numbered so that all differ. For each path and number of rows:

- seconds, processor_s: of the command and all its processes, start included; the engine is not among them.
- peak_mb: the most that they held together (proportional set size), largest_worker_mb: the most that one worker held.
- output_bytes_a_row, log_bytes_a_row: of the files on disk beyond the input, and of the store of answers.

`a_row` is the difference between the most and the fewest rows, which leaves the start out.
"""

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import pandas as pd
import psutil

from stages.parts.run.files import write_json
from tests.bench.machine import machine
from tests.conftest import ROOT
from tests.serve.shop import Shop, ended, make_shop, start, start_engine

FILE_ROWS = 10_000
LABELS = 25
MB = 2**20


def texts(rows: int) -> Iterator[str]:
    sample = pd.read_csv(ROOT / "data/sample/train.csv").text
    for number, text in zip(range(rows), itertools.cycle(sample), strict=False):
        yield f"{text} ({number})"


def write_input(shop: Shop, rows: int) -> int:
    """The same rows as in.csv and in in/, whose bytes are given."""
    table = pd.DataFrame({"id": range(rows), "text": list(texts(rows))})
    table.to_csv(shop.folder / "in.csv", index=False)
    (shop.folder / "in").mkdir()
    for first in range(0, rows, FILE_ROWS):
        table[first : first + FILE_ROWS].to_parquet(
            shop.folder / f"in/{first:09}.parquet", index=False, compression="zstd"
        )
    return size(shop.folder / "in")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


class Watch(threading.Thread):
    """Looks at a process and its children every second until it ends."""

    def __init__(self, process: Popen[str], stores: Path, rows_a_store: int) -> None:
        super().__init__()
        self.process = process
        self.stores, self.rows_a_store = stores, rows_a_store
        self.seconds: dict[int, float] = defaultdict(float)
        self.peak = self.largest_worker = 0
        self.log_bytes_a_row = 0.0

    def run(self) -> None:
        while self.process.poll() is None:
            with suppress(psutil.Error):
                self.look(
                    [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
                )
            for store in self.stores.rglob("*.sqlite"):
                with suppress(FileNotFoundError):
                    self.log_bytes_a_row = max(self.log_bytes_a_row, store.stat().st_size / self.rows_a_store)
            time.sleep(1)

    def look(self, processes: list[psutil.Process]) -> None:
        held = 0
        for process in processes:
            try:
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_full_info().pss
                    worker = "MapWorker" in " ".join(process.cmdline())
            except psutil.Error:
                continue
            self.seconds[process.pid] = times.user + times.system
            held += memory
            if worker:
                self.largest_worker = max(self.largest_worker, memory)
        self.peak = max(self.peak, held)


def measure(shop: Shop, rows: int, *command: str) -> dict[str, Any]:
    """Run a command to its end."""
    began = time.monotonic()
    process = start(shop, *command, RAY_worker_niceness="0", RAY_ADDRESS="local")
    stores, rows_a_store = ("out/.answers", FILE_ROWS) if "--ray" in command else (".cache/batch", rows)
    watch = Watch(process, shop.folder / stores, rows_a_store)
    watch.start()
    if process.wait():
        sys.exit((shop.folder / "log").read_text()[-3000:])
    watch.join()
    return {
        "seconds": time.monotonic() - began,
        "processor_s": sum(watch.seconds.values()),
        "peak_mb": watch.peak / MB,
        "largest_worker_mb": watch.largest_worker / MB or None,
        "log_bytes_a_row": watch.log_bytes_a_row,
    }


def both_paths(rows: int, latency_ms: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        shop = make_shop(Path(name) / "shop", labels=[f"label_of_some_length_{number}" for number in range(LABELS)])
        before = write_input(shop, rows)
        with ended(start_engine(shop, latency_ms)):
            found["ray"] = measure(shop, rows, "serve.batch", "--ray", "in", "out")
            found["ray"]["output_bytes_a_row"] = (size(shop.folder / "out") - before) / rows
            found["plain"] = measure(shop, rows, "serve.batch", "in.csv", "out.csv")
    return found


def a_row(fewest: dict[str, Any], most: dict[str, Any], rows: int) -> dict[str, float]:
    return {
        "rows_per_second": rows / (most["seconds"] - fewest["seconds"]),
        "processor_ms": 1000 * (most["processor_s"] - fewest["processor_s"]) / rows,
        "peak_mb_more": most["peak_mb"] - fewest["peak_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.batch", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 200_000])
    parser.add_argument("--latency-ms", type=float, default=250)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/batch.json"))
    given = parser.parse_args()
    fewest, most = sorted(given.rows)
    found: dict[str, Any] = {"machine": machine(), "latency_ms": given.latency_ms, "rows": {}}
    for rows in (fewest, most):
        found["rows"][rows] = both_paths(rows, given.latency_ms)
        write_json(given.out, found)
        print(json.dumps({"rows": rows, **found["rows"][rows]}), flush=True)
    found["a_row"] = {
        path: a_row(found["rows"][fewest][path], found["rows"][most][path], most - fewest) for path in ("ray", "plain")
    }
    write_json(given.out, found)
    print(json.dumps(found["a_row"]), flush=True)


if __name__ == "__main__":
    main()
