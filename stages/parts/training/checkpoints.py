"""What a training leaves on disk, read again: complete checkpoints, the log, the learning curve."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from stages.parts.run.files import read_json

STATE = "trainer_state.json"  # the trainer writes it last into a checkpoint
CURVE_POINTS = 48


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a training's folder, first to last, without one that a kill cut off: its last file is missing
    or unreadable.
    """
    complete = []
    for step in folder.glob("checkpoint-*"):
        with suppress(FileNotFoundError, json.JSONDecodeError):
            json.loads((step / STATE).read_text())
            complete.append(step)
    return sorted(complete, key=lambda step: int(step.name.rpartition("-")[2]))


def training_log(checkpoint: Path) -> list[dict[str, Any]]:
    """What was logged until a checkpoint, a step an entry."""
    return [entry for entry in read_json(checkpoint / STATE)["log_history"] if "loss" in entry]


def learning_curve(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Means of loss and accuracy over CURVE_POINTS stretches of the log (or a point a step where those are fewer)."""
    stretches = np.array_split(np.arange(len(log)), min(CURVE_POINTS, len(log)))
    return [
        {
            **{key: log[steps[-1]][key] for key in ("step", "epoch", "learning_rate")},
            **{key: float(np.mean([log[step][key] for step in steps])) for key in ("loss", "mean_token_accuracy")},
        }
        for steps in stretches
    ]
