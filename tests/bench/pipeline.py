"""The whole pipeline with some parameters changed, as benches run it."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.parts.run.files import read_json


def run_pipeline(changes: Sequence[str]) -> dict[str, Any]:
    """What metrics.json says after a run with `changes` (KEY=VALUE).

    It runs in a clone of the last commit, with this repository's DVC cache: what ran before is not run again, and nothing here changes.
    """
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", root, clone], check=True)
        subprocess.run(["dvc", "cache", "dir", "--local", root / ".dvc/cache"], cwd=clone, check=True)
        if (root / ".cache/dspy").is_dir():  # the teacher's answers
            shutil.copytree(root / ".cache/dspy", clone / ".cache/dspy")
        settings = [part for change in changes for part in ("-S", change)]
        subprocess.run(["dvc", "exp", "run", *settings], cwd=clone, check=True)
        metrics: dict[str, Any] = read_json(clone / "reports/metrics.json")
    return metrics
