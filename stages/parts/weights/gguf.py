"""GGUF files as plain safetensors."""

from pathlib import Path

from stages.parts.run.errors import UserError


def dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF causal language model as bfloat16 safetensors, with its tokenizer and chat template.

    Raises UserError for files that transformers can't read.
    """
    import torch  # seconds and hundreds of MB, which only this file's callers need
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"dequantising {file.name}", flush=True)
    try:
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{file} could not be read as GGUF ({' '.join(str(error).split())[:200]}): use a model whose "
            f"architecture transformers reads from GGUF, or safetensors"
        ) from None
    # A model that was loaded from GGUF refuses save_pretrained, though its weights are plain tensors by now.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
