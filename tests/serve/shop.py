"""The real commands of serve/ on a small made-up pair, with the stub engine in place of vLLM."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dspy
import requests
import yaml

from stages.parts.engines.engine import served_name
from stages.parts.numbers.calibration import PairCalibration, StudentCalibration
from stages.parts.run import paths
from stages.parts.run.files import file_sha256, folder_sha256, write_json, write_jsonl
from stages.parts.run.machine import free_port
from stages.parts.run.params import Style
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.program_file import Sidecar, save_program, save_sidecar
from stages.parts.task.prompt import StudentFormat
from tests.conftest import ROOT

LABELS = ["card_arrival", "declined_card_payment", "pending_top_up", "what's_this"]
ENGINE_KEY = "the engine's own key"
PATIENCE_S = 60


@dataclass
class Shop:
    """A folder with a pair in it, and the address of its stub engine."""

    folder: Path
    program: IntentClassifier
    style: Style
    model: str
    engine_port: int = field(default_factory=free_port)

    @property
    def engine(self) -> str:
        return f"http://127.0.0.1:{self.engine_port}"


def make_shop(
    folder: Path,
    style: Style = "direct",
    threshold: float = 0.5,
    labels: Sequence[str] = tuple(LABELS),
    real: tuple[Path, Path] | None = None,
    max_tokens: int = 8,
    **serve: object,
) -> Shop:
    """Write params.yaml and models/ as `dvc repro` would leave them, for `real` weights (the folders of base and
    adapter), or for some that nobody will load."""
    folder.mkdir()
    base, adapter = folder / paths.BASE, folder / paths.LORA / "epoch-1"
    for weights, source in zip((base, adapter), real or (None, None), strict=True):
        if source:
            shutil.copytree(source, weights)
        else:
            weights.mkdir(parents=True)
            (weights / "weights").write_text(weights.name)
    program = IntentClassifier(list(labels), "Classify.", style)
    predictor(program).demos = [dspy.Example(query="where is it", reasoning="It waits.", label=labels[0])]
    shop = Shop(folder, program, style, served_name("epoch-1", adapter))

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["serve"] |= {"model": "decoder", "port": free_port(), **serve}
    params["engine"]["api_base"] = f"{shop.engine}/v1"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    save_program(program, folder / paths.PROGRAM)
    sidecar = Sidecar(
        profile="embedded",
        labels=list(labels),
        instructions="Classify.",
        style=style,
        program="optimized",
        program_sha256=file_sha256(folder / paths.PROGRAM),
        prompt_format=StudentFormat.version,
        max_tokens=max_tokens,
        base=str(paths.BASE),
        base_sha256=folder_sha256(base),
        checkpoint=str(paths.LORA / "epoch-1"),
        checkpoint_sha256=folder_sha256(adapter),
        dspy_version=dspy.__version__,
        dev_accuracy=0.5,
    )
    save_sidecar(sidecar, folder / paths.SIDECAR)
    calibration = PairCalibration(
        checkpoint_sha256=sidecar.checkpoint_sha256,
        program_sha256=sidecar.program_sha256,
        temperature=1.0,
        threshold=threshold,
        wanted_precision=0.9,
        rows=1,
        coverage=1.0,
        precision=1.0,
    )
    write_json(folder / paths.CALIBRATION, calibration.model_dump())
    return shop


def start(shop: Shop, *module: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m MODULE` in the shop, its output in the shop's log."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "ENGINE_API_KEY": ENGINE_KEY, **environment}
    with (shop.folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *module], cwd=shop.folder, env=known, stdout=log, stderr=log, text=True
        )


def wait_until(url: str, status: int = 200, patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while True:
        try:
            if requests.get(url, timeout=5).status_code == status:
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < end, f"{url} did not answer {status}"
        time.sleep(0.05)


def until(happened: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends the process with the block."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def start_engine(shop: Shop, latency_ms: float = 0) -> subprocess.Popen[str]:
    """The stub engine for the shop, up."""
    return run_stub(
        shop, "tests.serve.stub_engine", "--latency-ms", str(latency_ms), "--model", shop.model, "--key", ENGINE_KEY
    )


def run_stub(shop: Shop, *module: str) -> subprocess.Popen[str]:
    """A stub on the engine's port, up."""
    engine = start(shop, *module, "--port", str(shop.engine_port))
    wait_until(f"{shop.engine}/last")
    return engine


def student_calibration(folder: Path, least_familiarity: float | None = None) -> dict[str, object]:
    """A calibration of the in-process student in a folder, as stage calibrate writes it."""
    return StudentCalibration(
        temperature=1.5,
        threshold=0.3,
        wanted_precision=0.9,
        rows=100,
        coverage=0.5,
        precision=0.9,
        least_familiarity=least_familiarity,
        student_sha256=folder_sha256(folder),
    ).model_dump()


def hire_teacher(shop: Shop, labels: Sequence[str], truth: Mapping[str, str], price: Mapping[str, float]) -> int:
    """Give the shop's profile a hosted teacher that knows the labels of the texts in `truth`; returns its port."""
    port, folder = free_port(), shop.folder
    params = yaml.safe_load((folder / "params.yaml").read_text())
    teacher = params["profiles"]["api"]["teacher"] | {"api_base": f"http://127.0.0.1:{port}/v1", "price": dict(price)}
    params["profiles"]["embedded"]["teacher"] = teacher
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_json(folder / paths.LABELS, list(labels))
    write_json(folder / paths.DESCRIPTIONS, {})
    for file in (paths.GOLD, paths.POOL, paths.TEST, paths.REVIEWED):
        write_jsonl(folder / file, [])
    write_jsonl(folder / "truth.jsonl", [{"text": text, "label": label} for text, label in truth.items()])
    return port


@contextmanager
def teaching(shop: Shop, port: int, *options: str) -> Iterator[str]:
    """The hired teacher's URL while it works."""
    module = ["tests.teachers.simulated_teacher", "--port", str(port), "--rows", str(shop.folder / "truth.jsonl")]
    with ended(start(shop, *module, *options)):
        wait_until(f"http://127.0.0.1:{port}/stats")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving(shop: Shop, arguments: Sequence[str] = (), module: str = "serve", **environment: str) -> Iterator[str]:
    """The service's URL, once it is ready."""
    port = free_port()
    with ended(start(shop, module, "--port", str(port), *arguments, **environment)) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(f"{url}/readyz")
        except AssertionError as error:
            raise AssertionError((shop.folder / "log").read_text()[-2000:]) from error
        yield url
        assert process.poll() is None, "the service ended by itself"


def stub_counts(shop: Shop) -> dict[str, int]:
    """How many requests the engine got, for how many different queries, and how many their client cancelled."""
    found: dict[str, int] = requests.get(f"{shop.engine}/counts", timeout=30).json()
    return found


def last_request(shop: Shop) -> Mapping[str, object]:
    """The body that the engine got last."""
    found: Mapping[str, object] = json.loads(requests.get(f"{shop.engine}/last", timeout=5).content)
    return found
