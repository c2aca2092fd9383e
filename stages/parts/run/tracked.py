"""A finished stage told to the trackers that params.yaml names, by a process of their own virtual environment."""

import subprocess
import sys

from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from stages.parts.run.paths import cache

PATIENCE_S = 180


def tell_trackers(stage: str) -> None:
    """Never raises and never fails a run: what goes wrong is one line."""
    try:
        settings = load_params().tracking
    except UserError:  # a stage that reads no parameters
        return
    if not (settings.mlflow or settings.wandb):
        return
    python = cache().parent / ".venv-tracking/bin/python"
    if not python.is_file():
        print(
            f"tracking: {python.parent.parent} is missing, {stage} is not tracked: make setup-tracking", file=sys.stderr
        )
        return
    try:
        line = [str(python), "-W", "ignore", "-m", "stages.parts.tracking", stage]
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        problem = (
            (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1] if done.returncode else ""
        )
    except subprocess.TimeoutExpired:
        problem = f"no answer in {PATIENCE_S} s"
    except OSError as error:
        problem = f"{python}: {error.strerror}"
    if problem:
        print(f"tracking: {stage} is not tracked: {problem[:300]}", file=sys.stderr)
