"""Running the pipeline in a clone, and what it started."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from stages.parts.run.machine import free_port
from tests.conftest import run

STAGES = "raw filter split embed teacher sft base lora linear encoder optimize calibrate evaluate report".split()


def ran(output: str) -> list[str]:
    """The stages that a `dvc repro` or `dvc exp run` really ran, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


def edit(folder: Path, *path: str, value: object) -> None:
    """Change one parameter in params.yaml."""
    file = folder / "params.yaml"
    values = yaml.safe_load(file.read_text())
    block = values
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def repro(folder: Path) -> list[str]:
    return ran(run(folder, "dvc", "repro").stdout)


def engines(folder: Path) -> list[psutil.Process]:
    """The vLLM processes that were started from a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(folder) and "vllm" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def api_server(folder: Path) -> psutil.Process:
    """The one engine's main process."""
    [server] = [process for process in engines(folder) if "api_server" in " ".join(process.cmdline())]
    return server


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


def borrow_environment(folder: Path) -> None:
    """Let this virtual environment stand in for a clone's own, so that `make` has nothing to set up."""
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    for file in (*folder.glob("requirements-*.lock"), folder / "setup.sh"):
        os.utime(file, (0, 0))  # copies are younger than the set-up's mark


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of `make serve`'s service on the real engine; Ctrl-C at the end leaves nothing behind."""
    port = free_port()
    # which a shell's background jobs, and all that they start, ignore
    heed_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    line = [sys.executable, "-m", "serve", "--model", "decoder", "--port", str(port)]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True, preexec_fn=heed_sigint)
    assert process.stdout
    while "serving on" not in (line := process.stdout.readline()):
        assert line, "the service ended"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(lambda: not engines(folder), 30)


def classify(service: str, queries: list[str]) -> list[dict[str, Any]]:
    answered = requests.post(f"{service}/classify_intent/batch", json={"queries": queries}, timeout=60)
    assert answered.status_code == 200, answered.text
    answers: list[dict[str, Any]] = answered.json()["answers"]
    return answers
