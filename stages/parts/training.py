"""SFT with TRL: chat rows to token ids, and the one training loop for base weights and adapters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from stages.parts.errors import UserError
from stages.parts.shared_prefix import IGNORED, SHARED_PREFIX, SharedPrefixCollator, common_prefix_length

WARM_UP = 0.06  # share of the steps
CLIP = 1.0


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt_too: bool = False) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one chat; the loss is on the last message alone, or on the user's too with `prompt_too`."""
    whole = cast(list[int], tokenizer.apply_chat_template(messages, return_dict=False))
    learned_from = messages[:-2] if prompt_too else messages[:-1]
    prompt = cast(list[int], tokenizer.apply_chat_template(learned_from, add_generation_prompt=not prompt_too, return_dict=False))
    if whole[: len(prompt)] != prompt:
        raise UserError("the student's chat template writes a prompt differently once the answer follows; choose another student")
    return {"input_ids": whole, "labels": [IGNORED] * len(prompt) + whole[len(prompt) :]}


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    *,
    folder: Path,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    lora: LoraConfig | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place on encoded rows; returns the log, one entry every few steps.

    Rows that share a prompt prefix compute it once (stages/parts/shared_prefix.py). With `lora`, adapters are trained and a checkpoint is
    kept for each epoch in `folder`; a run that finds checkpoints there goes on from the last one. Raises UserError where the loss
    leaves the finite numbers.
    """
    prefix_length = common_prefix_length(rows)
    shares = prefix_length > 0 and (lora is None or lora.lora_dropout == 0)
    if shares:
        model.set_attn_implementation(SHARED_PREFIX)
        print(f"{len(rows)} rows share a prefix of {prefix_length} tokens: computed once a batch")
    else:
        print(f"{len(rows)} rows, each computed whole ({'no common prefix' if not prefix_length else 'LoRA dropout is above 0'})")
    on_gpu = torch.cuda.is_available()
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        max_grad_norm=CLIP,
        weight_decay=0.01,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_nan_inf_filter=False,  # else a loss that is no number is logged as 0
        logging_steps=max(1, math.ceil(len(rows) / batch / 8)),
        save_strategy="epoch" if lora else "no",
        save_only_model=False,
        report_to="none",
        seed=seed,
        data_seed=seed,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=SharedPrefixCollator(prefix_length) if shares else DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        peft_config=lora,
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    if shares:
        model.set_attn_implementation("sdpa")
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not all(math.isfinite(entry["loss"]) for entry in log):
        raise UserError(
            "the training loss is not a number any more: lower the learning rate (profiles.NAME.sft.learning_rate) or lora.alpha"
        )
    return log
