"""The one training loop, TRL's, for base weights, adapters and whole models."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from stages.parts.run.errors import UserError
from stages.parts.run.params import Train
from stages.parts.training.meanings import Meanings, MeaningsCollator, MeaningsTrainer
from stages.parts.training.rows import Change, EachEpoch, EncodedRow, cut, drawn_answers, query_dropout
from stages.parts.training.shared_prefix import (
    SHARED_PREFIX,
    SharedPrefixCollator,
    can_share,
    common_prefix_length,
    share_prefix,
)
from stages.parts.training.watch import OneOptimizer, Watch, complete_checkpoints

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class TrainingPlan:
    """How to train: AdamW with a cosine after a warm-up, as `settings` say.

    `settings.batch` is of all devices together, of which each computes `at_once` rows at a time (None: all of its
    share). Each epoch drops a share `settings.query_dropout` of the queries' tokens anew and, if there are `answers`,
    draws each row's from them by the row's `shares`. With `meanings` rows learn their texts' vectors too; they
    have to share a prefix.
    """

    settings: Train
    seed: int
    answers: tuple[tuple[int, ...], ...] = ()
    at_once: int | None = None
    lora: LoraConfig | None = None
    meanings: Meanings | None = None


def rows_at_once(batch: int, wanted: int | None) -> tuple[int, int]:
    """How a process computes a batch: (rows at once, times), with the most rows that divide the batch and are within
    `wanted`.
    """
    at_once = next(rows for rows in range(min(batch, wanted or batch), 0, -1) if batch % rows == 0)
    return at_once, batch // at_once


@contextmanager
def naming_what_to_lower() -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into one line."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise UserError(
            "out of memory: lower runtime.rows_at_once (same result, slower) or train.batch; where the weights "
            "alone are too "
            "large, choose train.method lora or qlora, runtime.parallel fsdp, or a smaller student"
        ) from None


def why_not_shared(model: PreTrainedModel, prefix_length: int, longest: int, lora: LoraConfig | None) -> str:
    """Return what keeps rows of up to `longest` tokens from sharing the computation of their prefix; empty if nothing
    does.
    """
    if not prefix_length:
        return "no common prefix"
    if lora and lora.lora_dropout:
        return "LoRA dropout is above 0"
    return "" if can_share(model, longest) else "the student has other layers than full attention"


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    plan: TrainingPlan,
    folder: Path,
    *,
    keep_epochs: bool = False,
) -> SFTTrainer:
    """TRL's trainer on encoded rows that fit the model. Rows that share a prompt prefix compute it once
    (shared_prefix.py).
    """
    wanted, processes = plan.settings, int(os.environ.get("WORLD_SIZE", "1"))
    if wanted.batch % processes:
        raise UserError(
            f"{processes} devices can't share a batch of {wanted.batch} rows evenly: make train.batch a multiple"
        )
    if processes > 1:  # a device with fewer rows than another would see some twice
        whole = len(rows) // wanted.batch * wanted.batch
        if not whole:
            raise UserError(f"{len(rows)} rows are no whole batch of {wanted.batch}: lower train.batch")
        print(f"{len(rows) - whole} rows beyond the last whole batch are left out")
        rows = rows[:whole]
    per_device, times = rows_at_once(wanted.batch // processes, plan.at_once)
    prefix_length = common_prefix_length(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    obstacle = why_not_shared(model, prefix_length, longest, plan.lora)
    if obstacle:
        print(f"{len(rows)} rows, each computed whole ({obstacle})")
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        collator: Any = DataCollatorForLanguageModeling(padding)
    else:
        share_prefix(model)
        print(f"{len(rows)} rows share a prefix of {prefix_length} tokens: computed once a batch")
        collator = SharedPrefixCollator(prefix_length)
    callbacks: list[TrainerCallback] = [
        Watch(sum(len(row["input_ids"]) for row in rows) / len(rows) * wanted.batch),
        OneOptimizer(),
    ]
    changes: list[Change] = []
    if wanted.query_dropout:
        changes.append(query_dropout(wanted.query_dropout, rows))
    if plan.answers:
        changes.append(drawn_answers(plan.answers))
    if plan.meanings:
        collator = MeaningsCollator(collator)
    if changes:
        collator = EachEpoch(collator, changes, plan.seed)
        callbacks.append(collator)
    on_gpu = torch.cuda.is_available()
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=wanted.epochs,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=times,
        learning_rate=wanted.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=wanted.warm_up,
        max_grad_norm=wanted.max_grad_norm,
        weight_decay=wanted.weight_decay,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_nan_inf_filter=False,  # else a NaN or infinite loss is logged as 0
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="epoch" if keep_epochs else "no",
        report_to="none",
        seed=plan.seed,
        data_seed=plan.seed,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if processes == 1:
        # else the trainer would split batches over all GPUs it sees, which TRL refuses
        settings._n_gpu = min(settings.n_gpu, 1)
    given: dict[str, Any] = {
        "model": model,
        "args": settings,
        "train_dataset": Dataset.from_list(list(rows)),
        "processing_class": tokenizer,
        "data_collator": collator,
        "peft_config": plan.lora,
        "callbacks": callbacks,
    }
    trainer = MeaningsTrainer(meanings=plan.meanings, **given) if plan.meanings else SFTTrainer(**given)
    trainer.remove_callback(PrinterCallback)  # a line a step
    return trainer


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    plan: TrainingPlan,
    folder: Path,
    *,
    keep_epochs: bool = False,
) -> list[dict[str, Any]]:
    """Train `model` in place on encoded rows; returns the log, a step an entry.

    With `keep_epochs` a checkpoint is kept for each epoch in `folder`; a run that finds checkpoints there goes on from
    the last one. Raises UserError where the loss leaves the finite numbers or grows, where memory does not suffice, and
    where no row fits the model.
    """
    rows = cut(rows, min(tokenizer.model_max_length, model.config.max_position_embeddings))
    done = complete_checkpoints(folder)
    with naming_what_to_lower():
        trainer = make_trainer(model, tokenizer, rows, plan, folder, keep_epochs=keep_epochs)
        trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
    if model.config._attn_implementation == SHARED_PREFIX:
        model.set_attn_implementation("sdpa")
    return [entry for entry in trainer.state.log_history if "loss" in entry]
