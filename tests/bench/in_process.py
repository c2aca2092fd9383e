"""Students that run in the service's process: how soon, how fast, in how much memory. `make bench-serve`

python -m tests.bench.in_process [--out reports/bench/in_process.json]

Needs a pipeline that has run (`dvc repro`). For each student, on an idle machine, without the cache of answers:

- ready_s: from the command to the first answer, of STARTS starts the median.
- memory_mb: the process's resident memory after all of this.
- p50_ms, p95_ms: one query at a time over HTTP.
- answers_per_second: CLIENTS clients over HTTP that ask without pause; the clients use the same cores, so they write
  and read no more of HTTP than they must.
- rows_per_second: `python -m serve.batch` on ROWS rows, its start included.
"""

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import uvloop
import yaml

from stages.parts.numbers.choice import IN_PROCESS
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_csv, write_json
from stages.parts.run.machine import free_port
from tests.bench.machine import machine
from tests.bench.serve import CLIENTS, ROOT, answers_per_second, command, query
from tests.serve.shop import wait_until

STARTS = 5
ALONE = 700  # queries, one at a time
ROWS = 20_000
SECONDS = 15
LENGTH = re.compile(rb"content-length: (\d+)")


class Connections:
    """Connections to the service, each with one query at a time: a third of aiohttp's processor time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, text: str) -> Any:
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        body = orjson.dumps(query(text))
        head = "POST /classify_intent HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: "
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        given = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(int(LENGTH.findall(given)[0]))
        if b" 200 " not in given[:16]:
            raise RuntimeError(f"the service answered {given[:40]!r}: {answer[:200]!r}")
        self.idle.append((reader, writer))
        return orjson.loads(answer)


async def over_http(port: int, texts: list[str]) -> dict[str, float]:
    ask, alone = Connections(port).ask, []
    for text in texts[:ALONE]:
        started = time.perf_counter()
        await ask(text)
        alone.append(1000 * (time.perf_counter() - started))
    together = await answers_per_second(ask, texts, SECONDS)
    cuts = statistics.quantiles(alone, n=20)
    return {"p50_ms": statistics.median(alone), "p95_ms": cuts[-1], "answers_per_second": together}


def measure(student: Path, texts: list[str]) -> dict[str, float]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["serve"]["cached_answers"] = 0
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        starts = []
        for number in range(STARTS):
            port, started = free_port(), time.perf_counter()
            with command("serve", "--student", str(student), "--port", str(port), folder=folder, key="") as process:
                wait_until(f"http://127.0.0.1:{port}/readyz")
                starts.append(time.perf_counter() - started)
                if number == STARTS - 1:
                    found |= uvloop.run(over_http(port, texts))
                    found["memory_mb"] = process.memory_info().rss / 1e6
        write_csv(folder / "in.csv", ["text"], ([texts[row % len(texts)]] for row in range(ROWS)))
        line = [sys.executable, "-m", "serve.batch", "in.csv", "out.csv", "--student", str(student)]
        started = time.perf_counter()
        subprocess.run(line, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, check=True)
        found["rows_per_second"] = ROWS / (time.perf_counter() - started)
    return {"ready_s": statistics.median(starts)} | found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.in_process", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/in_process.json"))
    to: Path = parser.parse_args().out
    texts = [row["text"] for row in read_jsonl(paths.TEST)]
    found: dict[str, Any] = {"machine": machine(), "clients": CLIENTS, "batch_rows": ROWS}
    for kind, (folder, *_) in IN_PROCESS.items():
        found[kind] = measure(folder.absolute(), texts)
        print(kind, ", ".join(f"{name} {value:.4g}" for name, value in found[kind].items()))
    write_json(to, found)


if __name__ == "__main__":
    main()
