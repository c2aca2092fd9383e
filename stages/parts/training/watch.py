"""A training while it runs and after it: its progress, a loss that goes wrong, the checkpoints and the log that it
leaves on the disk.
"""

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json
from stages.parts.run.progress import Progress

STATE = "trainer_state.json"  # the trainer writes it last into a checkpoint
CURVE_POINTS = 48
WINDOW = 20  # steps over which a loss is judged
LOWER_RATE = (
    "lower the learning rate (train.learning_rate, or profiles.NAME.student.learning_rate in stage base) or lora.alpha"
)


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


class Watch(TrainerCallback):
    """Shows loss, tokens a second and the time left; raises UserError at the first loss that is not finite, or once it
    has diverged.

    Diverged: the mean of the last WINDOW losses is twice the lowest such mean, and more than one nat a token above it.
    `step_tokens` are the rows' tokens in a step; a prefix that is computed once counts for each row, so that rates
    compare with other trainers'.
    """

    def __init__(self, step_tokens: float) -> None:
        self.step_tokens = step_tokens
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.lowest = math.inf

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress = (
            Progress("training", state.max_steps, "step", done=state.global_step)
            if state.is_world_process_zero
            else None
        )
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        logs: Mapping[str, float] = event["logs"]
        if "loss" not in logs:
            return
        loss = logs["loss"]
        if not (math.isfinite(loss) and math.isfinite(logs["grad_norm"])):
            raise UserError(f"the training loss is not a number any more at step {state.global_step}: {LOWER_RATE}")
        self.recent.append(loss)
        if len(self.recent) == WINDOW:
            mean = sum(self.recent) / WINDOW
            self.lowest = min(self.lowest, mean)
            if mean > max(2 * self.lowest, self.lowest + 1):
                raise UserError(
                    f"the training loss grew from {self.lowest:.2f} to {mean:.2f} by step {state.global_step}: "
                    f"{LOWER_RATE}"
                )
        rate = (state.global_step - self.first) * self.step_tokens / (time.monotonic() - self.started)
        if self.progress:
            more = state.global_step - self.progress.count
            self.progress.update(more, f"epoch {state.epoch:.1f}, loss {loss:.3f}, {rate:,.0f} tokens/s")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress:
            self.progress.close()


class OneOptimizer(TrainerCallback):
    """Keeps the optimiser's state of the last checkpoint only, which is all that a resumed run reads: it is twice a
    model's size.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            for checkpoint in complete_checkpoints(Path(str(args.output_dir)))[:-1]:
                (checkpoint / "optimizer.pt").unlink(missing_ok=True)
