"""An adapter folded into its base weights: one model without the LoRA path's cost, for vLLM, transformers and whatever reads those.

python -m stages.parts.merge [--to models/export]   exports the student that `optimize` chose
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stages.parts import paths
from stages.parts.errors import UserError
from stages.parts.program_file import load_sidecar


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` to write into, which takes its place if, and only if, the block ends well."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as scratch:
        draft = Path(scratch) / to.name
        yield draft
        if to.exists():
            shutil.rmtree(to)
        draft.rename(to)


def merge_adapter(base: Path, adapter: Path, to: Path) -> None:
    """Write `base` with `adapter` folded in, and its tokenizer, to the folder `to`, whole or not at all; replaces what is there.

    Weights keep the base's type; the sum is taken in float32 and rounded once. Raises UserError where base or adapter is missing.
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
    """Write a tuned student as one model: an adapter folded into its base, a student that was trained whole as it is."""
    if (tuned / "config.json").is_file():
        with whole_folder(to) as draft:
            shutil.copytree(tuned, draft)
    else:
        merge_adapter(base, tuned, to)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the chosen student as one model for vLLM, transformers and what reads those.")
    parser.add_argument("--to", type=Path, default=paths.EXPORT, help=f"folder to write, replaced if it is there (default: {paths.EXPORT})")
    to: Path = parser.parse_args().to
    try:
        sidecar = load_sidecar(paths.SIDECAR)
        export(Path(sidecar.base), Path(sidecar.adapter), to)
    except UserError as error:
        sys.exit(f"export: {error}")
    print(f"{sidecar.adapter} on {sidecar.base} written to {to}; its prompts are those of {paths.PROGRAM}")


if __name__ == "__main__":
    main()
