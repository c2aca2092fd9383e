"""The pipeline with some parameters changed, as benches run it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.parts.run.files import read_json
from tests.conftest import BANKING77


@contextmanager
def cloned() -> Iterator[Path]:
    """A clone of the last commit with this repository's DVC cache and teachers' answers: what ran before is not run
    again, and nothing here changes."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", root, clone], check=True)
        subprocess.run(["dvc", "cache", "dir", "--local", root / ".dvc/cache"], cwd=clone, check=True)
        if (root / ".cache/answers").is_dir():
            shutil.copytree(root / ".cache/answers", clone / ".cache/answers")
        yield clone


def run_stages(clone: Path, changes: Sequence[str], *stages: str) -> None:
    """Run stages, or all, with `changes` (KEY=VALUE), which stay."""
    settings = [part for change in changes for part in ("-S", change)]
    subprocess.run(["dvc", "exp", "run", *settings, *stages], cwd=clone, check=True)


def run_pipeline(changes: Sequence[str]) -> dict[str, Any]:
    """What metrics.json says after a run with `changes`."""
    with cloned() as clone:
        run_stages(clone, changes)
        metrics: dict[str, Any] = read_json(clone / "reports/metrics.json")
    return metrics


def corpora() -> dict[str, list[str]]:
    """The parameters of each corpus that is at hand."""
    found = {"sample": ["raw.source=sample"]}
    if BANKING77.is_dir():
        found["banking77"] = [
            "raw.source=csv",
            f"raw.train={BANKING77 / 'train.csv'}",
            f"raw.test={BANKING77 / 'test.csv'}",
        ]
    return found
