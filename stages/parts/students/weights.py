"""The student before and after training: loaded for a method, and an epoch's weights kept without what only the trainer
needs.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from stages.parts.run.errors import UserError
from stages.parts.run.params import Lora

Method = Literal["lora", "full", "qlora"]
# A checkpoint's files that serving reads: an adapter's, or a whole model's with its tokenizer.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("*config.json", "model*.safetensors", "*.safetensors.index.json", "tokenizer*", "chat_template.jinja")


def lora_config(lora: Lora, *, embeddings: bool) -> LoraConfig:
    """Adapters on all linear layers but the head; with `embeddings` those are trained whole, with a head that is tied
    to them.
    """
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        modules_to_save=["embed_tokens"] if embeddings else None,
        ensure_weight_tying=embeddings,
        task_type="CAUSAL_LM",
    )


def load_student(folder: Path, method: Method) -> PreTrainedModel:
    """The base weights: as they are for lora, in float32 for full (the optimiser's small steps vanish in bfloat16), in
    4 bits for qlora.
    """
    if method == "full":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if method == "lora":
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "train.method qlora needs bitsandbytes, which the locks leave out: .venv/bin/pip install bitsandbytes, "
            "or use lora"
        )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # each process on its own GPU
    place = {"": int(os.environ.get("LOCAL_RANK", "0"))} if torch.cuda.is_available() else None
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=four_bits, device_map=place)


def keep_weights(checkpoint: Path, to: Path) -> None:
    """Keep a checkpoint's adapter, or its whole model, without the trainer's own state; linked, since copies of whole
    models add up.
    """
    to.mkdir(parents=True, exist_ok=True)
    wanted = ADAPTER_FILES if (checkpoint / ADAPTER_FILES[0]).is_file() else MODEL_FILES
    for file in (file for pattern in wanted for file in checkpoint.glob(pattern)):
        kept = to / file.name
        kept.unlink(missing_ok=True)
        try:
            os.link(file, kept)
        except OSError:  # another file system
            shutil.copy(file, kept)
