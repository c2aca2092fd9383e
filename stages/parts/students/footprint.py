"""What an in-process student takes beside its answers: files, memory, and the seconds until its first answer.

python -m stages.parts.students.footprint FOLDER    answers one query, and says how much memory the process holds
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from stages.parts.run.errors import UserError
from stages.parts.students.local import load_local

MEGABYTE = 1e6
QUERY = "Where is my card?"


@dataclass(frozen=True)
class Footprint:
    """A student's files and the resident memory of a process that holds it, in MB of 10^6 bytes; seconds from the start
    of that process to its first answer.
    """

    file_mb: float | None = None
    memory_mb: float | None = None
    start_s: float | None = None


def folder_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MEGABYTE


def footprint(folder: Path) -> Footprint:
    """Measure a student in a fresh process; raises UserError if that process fails."""
    command = [sys.executable, "-m", __spec__.name, str(folder)]
    own_code = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    started = time.perf_counter()
    done = subprocess.run(command, env=own_code, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"{folder} does not answer: {done.stderr.strip()[-200:]}")
    return Footprint(folder_mb(folder), json.loads(done.stdout), seconds)


def memory_of_port(port: int | None) -> float | None:
    """Return the resident MB of the engine among this process's children that listens on a port, None if none does."""
    for child in psutil.Process().children(recursive=True):
        if f"{port}" in child.cmdline():
            held = [child, *child.children(recursive=True)]
            return sum(process.memory_info().rss for process in held) / MEGABYTE
    return None


def main() -> None:
    load_local(Path(sys.argv[1])).classify([QUERY])
    print(psutil.Process().memory_info().rss / MEGABYTE)


if __name__ == "__main__":
    main()
