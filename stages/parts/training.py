"""SFT with TRL: chat rows to token ids, and the one training loop for base weights, adapters and whole models."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from stages.parts.errors import UserError
from stages.parts.records import read_json
from stages.parts.shared_prefix import IGNORED, SHARED_PREFIX, SharedPrefixCollator, can_share, common_prefix_length, share_prefix

WARM_UP = 0.06  # share of the steps
CLIP = 1.0
WINDOW = 20  # steps over which a loss is judged
CURVE_POINTS = 48
STATE = "trainer_state.json"  # the trainer writes it last into a checkpoint
LOWER_RATE = "lower the learning rate (profiles.NAME.sft.learning_rate, or profiles.NAME.student.learning_rate in stage base) or lora.alpha"

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")

Row = dict[str, list[int]]


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt_too: bool = False) -> Row:
    """`input_ids` and `labels` of one chat; the loss is on the last message alone, or on the user's too with `prompt_too`."""
    whole = cast(list[int], tokenizer.apply_chat_template(messages, return_dict=False))
    learned_from = messages[:-2] if prompt_too else messages[:-1]
    prompt = cast(list[int], tokenizer.apply_chat_template(learned_from, add_generation_prompt=not prompt_too, return_dict=False))
    if whole[: len(prompt)] != prompt:
        raise UserError("the student's chat template writes a prompt differently once the answer follows; choose another student")
    return {"input_ids": whole, "labels": [IGNORED] * len(prompt) + whole[len(prompt) :]}


def cut(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows cut to `length` tokens, without those that have nothing left to learn (as TRL does with `max_length`); says how many."""
    kept = [{name: values[:length] for name, values in row.items()} for row in rows]
    kept = [row for row in kept if any(label != IGNORED for label in row["labels"])]
    if longer := sum(len(row["input_ids"]) > length for row in rows):
        print(f"{longer} rows are longer than the {length} tokens that the model reads: cut, and {len(rows) - len(kept)} left out")
    if not kept:
        raise UserError(f"no row's answer lies within the {length} tokens that the student reads: shorten the instructions or the texts")
    return kept


def rows_at_once(batch: int, wanted: int | None) -> tuple[int, int]:
    """How a process computes a batch: (rows at once, times), with the most rows that divide the batch and are within `wanted`."""
    at_once = next(rows for rows in range(min(batch, wanted or batch), 0, -1) if batch % rows == 0)
    return at_once, batch // at_once


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a training's folder, first to last, without one that a kill cut off: its last file is missing or unreadable."""
    found = []
    for step in folder.glob("checkpoint-*"):
        with suppress(FileNotFoundError, json.JSONDecodeError):
            json.loads((step / STATE).read_text())
            found.append(step)
    return sorted(found, key=lambda step: int(step.name.rpartition("-")[2]))


def training_log(checkpoint: Path) -> list[dict[str, Any]]:
    """What was logged until a checkpoint, a step an entry."""
    return [entry for entry in read_json(checkpoint / STATE)["log_history"] if "loss" in entry]


class Watch(TrainerCallback):
    """Shows loss, tokens a second and the time left; raises UserError at the first loss that is no number, or once it has diverged.

    Diverged: the mean of the last WINDOW losses is twice the lowest such mean, and more than one nat a token above it. `step_tokens` are
    the rows' tokens in a step; a prefix that is computed once counts for each row, so that rates compare with other trainers'.
    """

    def __init__(self, step_tokens: float) -> None:
        self.step_tokens = step_tokens
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.lowest = math.inf

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = tqdm(
            desc="training", total=state.max_steps, initial=state.global_step, unit="step", disable=not state.is_world_process_zero
        )
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        logs: Mapping[str, float] = found["logs"]
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
                raise UserError(f"the training loss grew from {self.lowest:.2f} to {mean:.2f} by step {state.global_step}: {LOWER_RATE}")
        rate = (state.global_step - self.first) * self.step_tokens / (time.monotonic() - self.started)
        self.bar.set_postfix_str(f"epoch {state.epoch:.1f}, loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


class OneOptimizer(TrainerCallback):
    """Keeps the optimiser's state of the last checkpoint only, which is all that a resumed run reads: it is twice a model's size."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            for checkpoint in complete_checkpoints(Path(str(args.output_dir)))[:-1]:
                (checkpoint / "optimizer.pt").unlink(missing_ok=True)


@contextmanager
def naming_what_to_lower() -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into one line."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise UserError(
            "out of memory: lower runtime.rows_at_once (same result, slower) or profiles.NAME.sft.batch; where the weights alone are too "
            "large, choose train.method lora or qlora, runtime.parallel fsdp, or a smaller student"
        ) from None


@dataclass(frozen=True)
class Recipe:
    """How to train. `batch` is of all devices together, of which each computes `at_once` rows at a time (None: all of its share)."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    at_once: int | None = None
    lora: LoraConfig | None = None


def why_not_shared(model: PreTrainedModel, prefix_length: int, lora: LoraConfig | None) -> str:
    """What keeps rows from sharing the computation of their prefix; empty where nothing does."""
    if not prefix_length:
        return "no common prefix"
    if lora and lora.lora_dropout:
        return "LoRA dropout is above 0"
    return "" if can_share(model) else "the student has other layers than full attention"


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    folder: Path,
    *,
    keep_epochs: bool = False,
) -> SFTTrainer:
    """TRL's trainer on encoded rows that fit the model. Rows that share a prompt prefix compute it once (stages/parts/shared_prefix.py)."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch % processes:
        raise UserError(f"{processes} devices can't share a batch of {recipe.batch} rows evenly: make profiles.NAME.sft.batch a multiple")
    if processes > 1:  # a device with fewer rows than another would see some twice
        whole = len(rows) // recipe.batch * recipe.batch
        if not whole:
            raise UserError(f"{len(rows)} rows are no whole batch of {recipe.batch}: lower profiles.NAME.sft.batch")
        print(f"{len(rows) - whole} rows beyond the last whole batch are left out")
        rows = rows[:whole]
    per_device, times = rows_at_once(recipe.batch // processes, recipe.at_once)
    prefix_length = common_prefix_length(rows)
    obstacle = why_not_shared(model, prefix_length, recipe.lora)
    if obstacle:
        print(f"{len(rows)} rows, each computed whole ({obstacle})")
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        collator: Any = DataCollatorForLanguageModeling(padding)
    else:
        share_prefix(model)
        print(f"{len(rows)} rows share a prefix of {prefix_length} tokens: computed once a batch")
        collator = SharedPrefixCollator(prefix_length)
    on_gpu = torch.cuda.is_available()
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=times,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        max_grad_norm=CLIP,
        weight_decay=0.01,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_nan_inf_filter=False,  # else a loss that is no number is logged as 0
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="epoch" if keep_epochs else "no",
        report_to="none",
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if processes == 1:
        settings._n_gpu = min(settings.n_gpu, 1)  # else the trainer would split batches over all GPUs it sees, which TRL refuses
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=collator,
        peft_config=recipe.lora,
        callbacks=[Watch(sum(len(row["input_ids"]) for row in rows) / len(rows) * recipe.batch), OneOptimizer()],
    )
    trainer.remove_callback(PrinterCallback)  # a line a step
    return trainer


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    folder: Path,
    *,
    keep_epochs: bool = False,
) -> list[dict[str, Any]]:
    """Train `model` in place on encoded rows; returns the log, a step an entry.

    With `keep_epochs` a checkpoint is kept for each epoch in `folder`; a run that finds checkpoints there goes on from the last one.
    Raises UserError where the loss leaves the finite numbers or grows, where memory does not suffice, and where no row fits the model.
    """
    rows = cut(rows, min(tokenizer.model_max_length, model.config.max_position_embeddings))
    done = complete_checkpoints(folder)
    with naming_what_to_lower():
        trainer = make_trainer(model, tokenizer, rows, recipe, folder, keep_epochs=keep_epochs)
        trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
    if model.config._attn_implementation == SHARED_PREFIX:
        model.set_attn_implementation("sdpa")
    return [entry for entry in trainer.state.log_history if "loss" in entry]


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
