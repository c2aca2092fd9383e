"""An adapter folded into its base weights: one model without the LoRA path's cost, for vLLM, transformers and whatever
reads those.
"""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_folder


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
