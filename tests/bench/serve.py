"""The service against the reference's handler, and against asking the engine directly. `make bench-serve`

python -m tests.bench.serve [--out reports/bench/serve.json]

Needs a pipeline that has run (`dvc repro`): it serves the chosen pair and asks the test rows' texts. Every figure is a
ratio or a difference of things measured in turns within this run:

- vs_reference_handler: answers a second at 64 clients with a stub engine of 100 ms latency, ours to the reference's
  handler, which runs the
  synchronous program in an async function.
- ray_vs_make_serve: the same clients on the same stub, a replica on Ray Serve to `make serve`; left out where Ray is
  not installed.
- cpu_ms_added: the service's own processor time per answer in that run.
- vs_engine_direct: answers a second from the real engine at 64 clients, through the service to without it, same request
  bodies.
- p50_added_ms: median time of one query at a time through the service less that without it.
- repeated: answers a second from the real engine at 64 clients where queries repeat as in support traffic (Zipf's law
  over the test rows),
  with the answer cache to without it, and the share of answers that did not ask the engine.
- answers: what holding answers to the labels costs against reading what comes ("validated", asked once more where it is
  no label).
- weights: what the adapter costs beside merged weights.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from tqdm import tqdm

from serve.student import ServedStudent, load_served_student
from stages.parts.engines.process import EngineProcess, running
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json
from stages.parts.run.machine import free_port
from stages.parts.run.params import Params, load_params
from stages.parts.students.pair import Classifier
from stages.parts.task.labels import UNKNOWN, match_label
from stages.parts.task.program import predictor
from stages.parts.task.program_file import load_sidecar
from stages.parts.task.prompt import TeacherFormat
from tests.bench.machine import machine
from tests.serve.shop import ENGINE_KEY, ended, wait_until

CLIENTS = 64
STUB_MS = 100
ROUNDS = 5  # of each side, in turns
# more: the engine takes queries in larger or smaller steps by chance, and its rate varies by a third
ENGINE_ROUNDS = 12
ROOT = Path.cwd()
RAY_PYTHON = ROOT / ".venv-ray/bin/python"

Ask = Callable[[str], Awaitable[Any]]


async def answers_per_second(ask: Ask, texts: Sequence[str], seconds: float) -> float:
    """Answers a second while CLIENTS clients ask without pause, after a warm-up of one query each."""
    queries = itertools.cycle(texts)
    await asyncio.gather(*(ask(next(queries)) for _ in range(CLIENTS)))
    answered, started = 0, time.perf_counter()

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            await ask(next(queries))
            answered += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answered / (time.perf_counter() - started)


async def seconds_alone(asks: Sequence[Ask], texts: Sequence[str]) -> list[float]:
    """The median seconds of one query at a time for each way of asking, in turns."""
    taken: list[list[float]] = [[] for _ in asks]
    for text in tqdm(texts, desc="one at a time", leave=False):
        for number, ask in enumerate(asks):
            started = time.perf_counter()
            await ask(text)
            taken[number].append(time.perf_counter() - started)
    return [statistics.median(times[len(asks) :]) for times in taken]


def pool_of_connections() -> aiohttp.ClientSession:
    """Connections that are dropped before a server drops them: one side's stand idle while the other has its turn."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2))


def asking(session: aiohttp.ClientSession, url: str, body: Callable[[str], Mapping[str, Any]], key: str = "") -> Ask:
    """A way to ask: POST the body for a text, raise where the answer is no success."""

    async def ask(text: str) -> Any:
        async with session.post(url, json=body(text), headers={"Authorization": f"Bearer {key}"}) as response:
            if response.status != 200:
                raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:200]}")
            return await response.json()

    return ask


@contextmanager
def command(*module: str, folder: Path, key: str, python: Path = Path(sys.executable)) -> Iterator[psutil.Process]:
    """`python -m MODULE` in a folder until the block ends."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "ENGINE_API_KEY": key}
    with ended(subprocess.Popen([python, "-m", *module], cwd=folder, env=known, text=True)) as process:
        yield psutil.Process(process.pid)


@contextmanager
def service(
    api_base: str,
    key: str,
    cached_answers: int = 0,
    module: Sequence[str] = ("serve",),
    python: Path = Path(sys.executable),
) -> Iterator[tuple[str, psutil.Process]]:
    """The real service, or another `module` of it, on an engine that runs already: its URL and process. By default each
    query is asked for itself."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["engine"]["api_base"] = api_base
    params["serve"] |= {"cached_answers": cached_answers, "model": "decoder"}
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "params.yaml").write_text(yaml.safe_dump(params))
        (Path(name) / "models").symlink_to(ROOT / "models")
        with command(*module, "--port", str(port), folder=Path(name), key=key, python=python) as process:
            wait_until(f"http://127.0.0.1:{port}/readyz")
            yield f"http://127.0.0.1:{port}/classify_intent", process


def processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def query(text: str) -> dict[str, str]:
    return {"query": text}


def stub_line(port: int, model: str) -> list[str]:
    return [
        "tests.serve.stub_engine",
        "--port",
        str(port),
        "--latency-ms",
        str(STUB_MS),
        "--model",
        model,
        "--key",
        ENGINE_KEY,
    ]


async def on_ray(texts: Sequence[str], model: str) -> dict[str, float] | None:
    """One replica on Ray Serve and `make serve`, in turns on the stub engine; None without .venv-ray."""
    if not RAY_PYTHON.is_file():
        print("Ray is left out: `make setup-ray` installs it")
        return None
    port = free_port()
    api_base = f"http://127.0.0.1:{port}/v1"
    replica = ("tests.bench.ray_classifier", "--api-base", api_base)
    rates: dict[str, list[float]] = {"ray": [], "make_serve": []}
    async with pool_of_connections() as session:
        with command(*stub_line(port, model), folder=ROOT, key=""):
            wait_until(f"{api_base}/models")
            with (
                service(api_base, ENGINE_KEY, module=replica, python=RAY_PYTHON) as (ray_url, _),
                service(api_base, ENGINE_KEY) as (url, _),
            ):
                asks = {"ray": asking(session, ray_url, query), "make_serve": asking(session, url, query)}
                for _ in tqdm(range(ROUNDS), desc="on Ray", leave=False):
                    for name, ask in asks.items():
                        rates[name].append(await answers_per_second(ask, texts, seconds=4))
    ray, plain = statistics.median(rates["ray"]), statistics.median(rates["make_serve"])
    return {"ray_vs_make_serve": ray / plain, "ray_answers_per_second": ray, "answers_per_second": plain}


async def against_the_stub(texts: Sequence[str], model: str) -> dict[str, float]:
    """Ours and the reference's handler on an engine that takes 100 ms for an answer and no processor."""
    ports = free_port(), free_port()
    api_base = f"http://127.0.0.1:{ports[0]}/v1"
    reference = [
        "tests.bench.reference_handler",
        "--port",
        str(ports[1]),
        "--api-base",
        api_base,
        "--model",
        model,
        "--key",
        ENGINE_KEY,
    ]
    async with pool_of_connections() as session:
        with command(*stub_line(ports[0], model), folder=ROOT, key=""):
            wait_until(f"{api_base}/models")
            with command(*reference, folder=ROOT, key=""), service(api_base, ENGINE_KEY) as (url, process):
                theirs_url = f"http://127.0.0.1:{ports[1]}/classify_intent"
                wait_until(f"http://127.0.0.1:{ports[1]}/openapi.json")
                ours, theirs = asking(session, url, query), asking(session, theirs_url, query)
                rates: dict[str, list[float]] = {"ours": [], "reference": []}
                spent = 0.0
                for _ in tqdm(range(ROUNDS), desc="stub engine", leave=False):
                    before, answered = processor_seconds(process), Counting(ours)
                    rates["ours"].append(await answers_per_second(answered, texts, seconds=4))
                    spent += (processor_seconds(process) - before) / answered.count
                    rates["reference"].append(await answers_per_second(theirs, texts, seconds=4))
    ours_rate, theirs_rate = statistics.median(rates["ours"]), statistics.median(rates["reference"])
    return {
        "vs_reference_handler": ours_rate / theirs_rate,
        "cpu_ms_added": 1000 * spent / ROUNDS,
        "answers_per_second": ours_rate,
        "reference_answers_per_second": theirs_rate,
    }


class Counting:
    """A way to ask that counts, warm-up included."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.count = 0

    async def __call__(self, text: str) -> Any:
        found = await self.ask(text)
        self.count += 1
        return found


async def against_the_engine(texts: Sequence[str], student: ServedStudent) -> dict[str, float]:
    """Through the service and without it, on the same real engine."""
    async with pool_of_connections() as session:
        with service(student.engine.served.api_base, student.engine.served.key) as (url, _):
            through = asking(session, url, query)
            # made beforehand: "direct" is the engine alone
            bodies = {text: student.classifier.request(text) for text in texts}
            direct = asking(
                session,
                f"{student.engine.served.api_base}/chat/completions",
                bodies.__getitem__,
                student.engine.served.key,
            )
            rates: list[list[float]] = [[], []]
            for _ in tqdm(range(ENGINE_ROUNDS), desc="real engine", leave=False):
                for number, ask in enumerate((through, direct)):
                    rates[number].append(await answers_per_second(ask, texts, seconds=4))
            alone = await seconds_alone([through, direct], texts[:200])
    ratios = sorted(ours / theirs for ours, theirs in zip(*rates, strict=True))
    return {
        "vs_engine_direct": statistics.median(ratios),
        "vs_engine_direct_lowest": ratios[0],
        "vs_engine_direct_highest": ratios[-1],
        "p50_added_ms": 1000 * (alone[0] - alone[1]),
        "p50_ms": 1000 * alone[0],
        "answers_per_second": statistics.median(rates[0]),
        "direct_answers_per_second": statistics.median(rates[1]),
    }


async def repeated_queries(texts: Sequence[str], student: ServedStudent) -> dict[str, float]:
    """The real engine through the service, with and without its answer cache, on queries whose frequency falls as 1 /
    rank.
    """
    stream = random.Random(0).choices(texts, weights=[1 / rank for rank in range(1, len(texts) + 1)], k=20_000)
    api_base, key = student.engine.served.api_base, student.engine.served.key
    async with pool_of_connections() as session:
        with service(api_base, key) as (without_url, _), service(api_base, key, len(texts) // 4) as (with_url, process):
            asks = Counting(asking(session, with_url, query)), asking(session, without_url, query)
            rates: list[list[float]] = [[], []]
            spent = processor_seconds(process)
            for _ in tqdm(range(ROUNDS), desc="repeated queries", leave=False):
                for number, ask in enumerate(asks):
                    rates[number].append(await answers_per_second(ask, stream, seconds=4))
            spent = processor_seconds(process) - spent
            async with session.get(with_url.replace("/classify_intent", "/metrics")) as response:
                asked = re.search(r'answers_total{source="engine"} (\S+)', await response.text())
    assert asked
    return {
        "with_cache_vs_without": statistics.median(rates[0]) / statistics.median(rates[1]),
        "hit_rate": 1 - float(asked[1]) / asks[0].count,
        "cached_answers": len(texts) // 4,
        "cpu_ms": 1000 * spent / asks[0].count,
        "answers_per_second": statistics.median(rates[0]),
        "answers_per_second_without": statistics.median(rates[1]),
    }


def validated_request(classifier: Classifier, text: str) -> dict[str, Any]:
    """The plain program's request: no opened answer, nothing that holds it to the labels, room for all its markers."""
    plain = classifier.requests
    messages = TeacherFormat().format(plain.signature, predictor(plain.program).demos, {"query": text})
    return {
        "messages": messages,
        "model": classifier.model,
        "temperature": 0.0,
        "max_tokens": plain.options["max_tokens"] + 48,
    }


async def forms_of_answers(rows: Sequence[Mapping[str, str]], student: ServedStudent) -> dict[str, Any]:
    """Constrained answers, and answers that are validated and asked for again, in turns: accuracy, invalid answers,
    tokens, speed.
    """
    classifier, texts = student.classifier, [row["text"] for row in rows]
    found: dict[str, Any] = {}
    async with pool_of_connections() as session:
        url = f"{student.engine.served.api_base}/chat/completions"
        constrained = asking(session, url, classifier.request, student.engine.served.key)
        once = asking(session, url, lambda text: validated_request(classifier, text), student.engine.served.key)

        def label_of(completion: Mapping[str, Any]) -> str:
            content = completion["choices"][0]["message"]["content"] or ""
            return match_label(
                content.partition("[[ ## label ## ]]")[2].partition("[[ ##")[0], classifier.requests.program.labels
            )

        async def validated(text: str) -> Any:
            completion = await once(text)
            return completion if label_of(completion) != UNKNOWN else await once(text)

        ways: dict[str, tuple[Ask, Callable[[Any], str]]] = {
            "constrained": (constrained, lambda completion: classifier.read(completion).label),
            "validated": (validated, label_of),
        }
        for name, (ask, read) in ways.items():
            completions = [await ask(text) for text in tqdm(texts, desc=name, leave=False)]
            labels = [read(completion) for completion in completions]
            found[name] = {
                "accuracy": sum(label == row["label"] for label, row in zip(labels, rows, strict=True)) / len(rows),
                "invalid": labels.count(UNKNOWN),
                "completion_tokens": statistics.mean(
                    completion["usage"]["completion_tokens"] for completion in completions
                ),
            }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (ask, _) in ways.items():
                rates[name].append(await answers_per_second(ask, texts, seconds=4))
        for name, measured in rates.items():
            found[name]["answers_per_second"] = statistics.median(measured)
    return found


def with_weights(params: Params, weights: str) -> ServedStudent:
    """The student on merged weights or with its adapter."""
    return load_served_student(
        params.model_copy(update={"runtime": params.runtime.model_copy(update={"weights": weights})})
    )


async def adapter_rate(texts: Sequence[str], student: ServedStudent) -> float:
    async with pool_of_connections() as session:
        ask = asking(
            session,
            f"{student.engine.served.api_base}/chat/completions",
            student.classifier.request,
            student.engine.served.key,
        )
        return statistics.median([await answers_per_second(ask, texts, seconds=4) for _ in range(ROUNDS)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/serve.json"))
    out = parser.parse_args().out

    params, rows = load_params(), read_jsonl(paths.TEST)
    texts = [row["text"] for row in rows]
    merged = with_weights(params, "merged")
    try:
        beside = with_weights(params, "adapter")
    except UserError as error:  # trained embeddings
        print(f"the adapter beside its base is left out: {error}")
        beside = None
    stub = asyncio.run(against_the_stub(texts, merged.classifier.model))
    ray = asyncio.run(on_ray(texts, merged.classifier.model))
    if not isinstance(merged.engine, EngineProcess):
        raise SystemExit("engine.api_base must be empty: this bench starts its own")
    with running(merged.engine):
        engine = asyncio.run(against_the_engine(texts, merged))
        answers = asyncio.run(forms_of_answers(rows, merged))
        repeated = asyncio.run(repeated_queries(texts, merged))
    weights = None
    if beside:
        with running(beside.engine):
            rate = asyncio.run(adapter_rate(texts, beside))
        weights = {"merged_vs_adapter": engine["direct_answers_per_second"] / rate, "adapter_answers_per_second": rate}

    found = {
        "vs_reference_handler": stub.pop("vs_reference_handler"),
        "cpu_ms_added": stub.pop("cpu_ms_added"),
        "vs_engine_direct": engine.pop("vs_engine_direct"),
        "p50_added_ms": engine.pop("p50_added_ms"),
        "machine": machine(),
        "clients": CLIENTS,
        "style": load_sidecar(paths.SIDECAR).style,
        "stub_engine": {"latency_ms": STUB_MS, **stub},
        "ray": ray,
        "real_engine": {"accuracy": read_json(paths.METRICS)["served"]["accuracy"], **engine},
        "repeated": repeated,
        "answers": answers,
        "weights": weights,
    }
    write_json(out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
