"""Running the pipeline in a clone, and what it started."""

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from tests.conftest import run

STAGES = ["raw", "filter", "split", "teacher", "sft", "base", "lora", "optimize", "calibrate", "evaluate", "report"]


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
