"""How fast rows are labelled through an endpoint that takes half a second an answer, and what memory that takes. `make
bench-teacher`

python -m tests.bench.teacher [--rows 10000 50000] [--memory 10000 50000 200000] [--in-flight 256] [--latency-ms 500]
[--out FILE]

The real stage, against a stub in a process of its own that answers the same to all (20 log-probabilities with the
label), on the same cores. The ideal is in-flight / latency. Memory is a question of its own, with an answer after
MEMORY_LATENCY_S: as fast as the processor bears it.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from stages.parts.run.files import read_json, write_json
from stages.parts.run.paths import TIMES
from tests.bench.machine import machine
from tests.teachers.sandbox import LABELS, Sandbox

MEMORY_LATENCY_S = 0.05
ANSWER = ["[[ ## reasoning ## ]]\nIts words say so.\n\n[[ ## label ## ]]\n", LABELS[0], "\n\n[[ ## completed ## ]]"]


def completion() -> bytes:
    tokens = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in ANSWER]
    tokens[1]["top_logprobs"] = [
        {"token": f"{label}{number}", "logprob": -3.0} for number in range(4) for label in LABELS
    ]
    choice = {"message": {"content": "".join(ANSWER)}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 30}}).encode()


def stub(port: int, latency_s: float) -> None:
    """Answers until it is killed; /stats says how many and between which times."""
    body, times = completion(), []

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        times.append(time.monotonic())
        await asyncio.sleep(latency_s)
        return web.Response(body=body, content_type="application/json")

    async def stats(request: web.Request) -> web.Response:
        return web.json_response({"requests": len(times), "first": min(times), "last": max(times)})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/stats", stats)])
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None, access_log=None)


def label(rows: int, in_flight: int, latency_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        sandbox = Sandbox(Path(name), pool=rows)
        sandbox.set("runtime", max_in_flight=in_flight, timeout_s=60)
        server = multiprocessing.Process(target=stub, args=(sandbox.port, latency_s))
        server.start()
        try:
            time.sleep(2)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(sandbox.command, cwd=sandbox.folder, env=sandbox.environment, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            stats = sandbox.stats()
        finally:
            server.kill()
            server.join()
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rate = stats["requests"] / (stats["last"] - stats["first"] + latency_s)
        return {
            "rows_per_second": rate,
            "of_ideal": rate / (in_flight / latency_s),
            "processor_ms_a_row": 1000 * used / stats["requests"],
            "peak_memory_mb": read_json(sandbox.folder / TIMES / "teacher.json")["peak_memory_mb"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 50_000, 200_000])
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency-ms", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/teacher.json"))
    given = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine(),
        "in_flight": given.in_flight,
        "latency_ms": given.latency_ms,
        "rate": [],
        "memory": [],
    }
    runs = [("rate", rows, given.latency_ms / 1000) for rows in given.rows] + [
        ("memory", rows, MEMORY_LATENCY_S) for rows in given.memory
    ]
    for what, rows, latency_s in runs:
        found[what].append({"rows": rows, **label(rows, given.in_flight, latency_s)})
        write_json(given.out, found)
        print(what, json.dumps(found[what][-1]), flush=True)


if __name__ == "__main__":
    main()
