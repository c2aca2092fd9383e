"""The student's weights: loaded to be trained, an epoch's kept, an adapter folded into its base.

A merged student is one model without the LoRA path's cost, for vLLM, transformers and whatever reads those.
"""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_folder
from stages.parts.run.params import Lora

Method = Literal["lora", "full", "qlora"]
# A checkpoint's files that serving reads: an adapter's, or a whole model's with its tokenizer.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("*config.json", "model*.safetensors", "*.safetensors.index.json", "tokenizer*", "chat_template.jinja")


def lora_config(lora: Lora, *, embeddings: bool, without: int = 0) -> LoraConfig:
    """Return adapters on all linear layers but the head, and but those of the first `without` transformer layers.

    With `embeddings` those are trained whole, with a head that is tied to them.
    """
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        exclude_modules=rf".*\.layers\.({'|'.join(map(str, range(without)))})\..*" if without else None,
        modules_to_save=["embed_tokens"] if embeddings else None,
        ensure_weight_tying=embeddings,
        task_type="CAUSAL_LM",
    )


def layers_below(model: PreTrainedModel, top: int | None) -> int:
    """Return how many layers lie below a model's `top` last ones, none if `top` is None; raises UserError for more than
    it has.

    With adapters above alone no gradient goes below them: for the last 10 layers of 30, a third of the way back.
    """
    layers: int = model.config.num_hidden_layers
    if top is not None and top > layers:
        raise UserError(f"train.top_layers is {top}, and the student has {layers} layers: lower it")
    return 0 if top is None else layers - top


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


def merge_adapter(base: Path, adapter: Path, to: Path) -> None:
    """Write `base` with `adapter` folded in, and its tokenizer, to the folder `to`, whole or not at all; replaces what
    is there.

    Weights keep the base's type; the sum is taken in float32 and rounded once. Raises UserError where base or adapter
    is missing.
    """
    for folder, file in ((base, "config.json"), (adapter, "adapter_config.json")):
        if not (folder / file).is_file():
            raise UserError(f"{folder} holds no {file}: run `dvc repro` or `dvc checkout`")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    with whole_folder(to) as draft:
        merged.to(AutoConfig.from_pretrained(base).dtype or torch.float32).save_pretrained(draft)
        AutoTokenizer.from_pretrained(base).save_pretrained(draft)


def export(base: Path, tuned: Path, to: Path) -> None:
    """Write a tuned student as one model: an adapter folded into its base, a student that was trained whole as it
    is.
    """
    if (tuned / "config.json").is_file():
        with whole_folder(to) as draft:
            shutil.copytree(tuned, draft)
    else:
        merge_adapter(base, tuned, to)
