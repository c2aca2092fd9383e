"""What watches a training: its progress, a loss that goes wrong, and the space that checkpoints take."""

import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.parts.run.errors import UserError
from stages.parts.run.progress import Progress
from stages.parts.training.checkpoints import complete_checkpoints

WINDOW = 20  # steps over which a loss is judged
LOWER_RATE = (
    "lower the learning rate (train.learning_rate, or profiles.NAME.student.learning_rate in stage base) or lora.alpha"
)


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
