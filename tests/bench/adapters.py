"""Ten students on one base in one engine, against engines of their own. `make bench-adapters`

python -m tests.bench.adapters [--out reports/bench/adapters.json]

Needs a pipeline that has run: it takes its base, program and test texts. The students are random adapters of the base,
of the rank in params.yaml: what they answer is nonsense, what they cost is not. An engine of its own has the adapter
folded in, as `make serve` starts it; OWN of them run, since ten may not fit on this machine: memory and starts are
added up, so ten cost 10 / OWN times as much. 64 clients ask the engines themselves, one student after the other; all
ways are measured in turns within this run.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch
from peft import get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from serve.student import load_served_student
from stages.parts.engines.engine import AdapterSlots, ServedModel, served_name
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.process import EngineProcess, running
from stages.parts.engines.vllm import load_adapter
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json
from stages.parts.run.params import Lora, load_params
from stages.parts.students.serving import base_engine, tuned_engine
from stages.parts.students.weights import lora_config
from tests.bench.machine import machine
from tests.bench.serve import CLIENTS, Ask, answers_per_second, pool_of_connections

STUDENTS, OWN = 10, 3
ROUNDS = 5  # of each way, in turns
SECONDS = 4

Request = Callable[[str], dict[str, Any]]


def random_adapter(base: Path, lora: Lora, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora_config(lora, embeddings=False))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    tuned.save_pretrained(folder)
    return folder


def memory(engines: Sequence[EngineProcess]) -> float:
    """GiB that the engines' processes hold; what several share is divided among them."""
    processes = [psutil.Process(engine.process.pid) for engine in engines if engine.process]
    everyone = itertools.chain.from_iterable([process, *process.children(recursive=True)] for process in processes)
    return sum(process.memory_full_info().pss for process in everyone) / 2**30


def mixed(session: aiohttp.ClientSession, request: Request, students: Sequence[tuple[ServedModel, str]]) -> Ask:
    """A way to ask: each query the next student, by its engine and its name there."""
    turns = itertools.cycle(students)

    async def ask(text: str) -> None:
        served, name = next(turns)
        body, headers = {**request(text), "model": name}, {"Authorization": f"Bearer {served.key}"}
        async with session.post(f"{served.api_base}/chat/completions", json=body, headers=headers) as response:
            if response.status != 200:
                raise RuntimeError(f"{name} answered {response.status}: {(await response.text())[:200]}")
            await response.read()

    return ask


async def load_all(served: ServedModel, adapters: dict[str, Path]) -> list[float]:
    """Seconds that each adapter took to load."""
    taken = []
    async with engine_client(served, 60) as client:
        for name, folder in adapters.items():
            started = time.perf_counter()
            await load_adapter(client, name, folder)
            taken.append(time.perf_counter() - started)
    return taken


async def rates(
    ways: dict[str, list[tuple[ServedModel, str]]], request: Request, texts: Sequence[str]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {way: [] for way in ways}
    async with pool_of_connections() as session:
        asks = {way: mixed(session, request, students) for way, students in ways.items()}
        for _ in tqdm(range(ROUNDS), desc="in turns", leave=False):
            for way, ask in asks.items():
                found[way].append(await answers_per_second(ask, texts, SECONDS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adapters", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/adapters.json"))
    out = parser.parse_args().out
    params, texts = load_params(), [row["text"] for row in read_jsonl(paths.TEST)]
    request = load_served_student(params).classifier.request
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ends:
        folders = [
            random_adapter(paths.BASE, params.lora, Path(scratch) / f"student{number}", number)
            for number in range(STUDENTS)
        ]
        adapters = {served_name(folder.name, folder): folder for folder in folders}
        one = base_engine(paths.BASE, {}, params, AdapterSlots(STUDENTS, params.lora.r))
        own = [tuned_engine(paths.BASE, folder, name, params) for name, folder in list(adapters.items())[:OWN]]
        starts = []
        for engine in (one, *own):
            started = time.perf_counter()
            ends.enter_context(running(engine))
            starts.append(time.perf_counter() - started)
        empty = memory([one])
        loads = asyncio.run(load_all(one.served, adapters))
        names = list(adapters)
        ways = {
            "one_engine_ten": [(one.served, name) for name in names],
            "one_engine_as_many": [(one.served, name) for name in names[:OWN]],
            "own_engines": [(engine.served, engine.served.names["base"]) for engine in own],
        }
        found = asyncio.run(rates(ways, request, texts))
        held = {"one": memory([one]), "own": memory(own)}
    median = {way: statistics.median(measured) for way, measured in found.items()}
    result = {
        "memory_one_vs_ten_engines": held["one"] / (held["own"] * STUDENTS / OWN),
        "start_one_vs_ten_engines": (starts[0] + sum(loads)) / (sum(starts[1:]) * STUDENTS / OWN),
        "rate_one_vs_own_engines": median["one_engine_as_many"] / median["own_engines"],
        "machine": machine(),
        "clients": CLIENTS,
        "students": STUDENTS,
        "own_engines": OWN,
        "memory_gib": {"one_empty": empty, "one_with_ten": held["one"], "own_each": held["own"] / OWN},
        "start_s": {"one": starts[0], "own_each": statistics.mean(starts[1:])},
        "load_ms": 1000 * statistics.median(loads),
        "answers_per_second": median,
        "answers_per_second_rounds": found,
    }
    write_json(out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
