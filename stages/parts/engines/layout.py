"""How to lay a model over the GPUs at hand: tensor parallel x pipeline parallel x copies."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.parts.run.errors import UserError

KV_SHARE = 0.10  # of an engine's memory, kept for the KV cache at the least
ACTIVATIONS = 4 * 2**30  # bytes a GPU, for activations and CUDA graphs


@dataclass(frozen=True)
class ModelShape:
    """What parallelism depends on: weight bytes, attention and key-value heads, layers."""

    weight_bytes: int
    heads: int
    kv_heads: int
    layers: int


@dataclass(frozen=True)
class Layout:
    """vLLM's --tensor-parallel-size, --pipeline-parallel-size and --data-parallel-size."""

    tensor: int
    pipeline: int
    copies: int


def model_shape(folder: Path, quantization: str | None = None) -> ModelShape:
    """The shape of a downloaded model, from its config.json and the size of its safetensors; raises UserError where the
    config lacks it.

    A checkpoint that is stored quantised (AWQ, GPTQ) counts as stored. Quantised to fp8 as it is loaded, the linear
    layers take half of their 16 bits; embeddings and head (counted whole, as the larger) stay.
    """
    whole = json.loads((folder / "config.json").read_text())
    return shape_of(whole, sum(path.stat().st_size for path in folder.glob("*.safetensors")), quantization, str(folder))


def shape_of(whole: dict[str, Any], stored: int, quantization: str | None, where: str) -> ModelShape:
    """The shape of a model with this config.json and `stored` bytes of weights, which are `where` errors say."""
    config = whole.get("text_config", whole)  # of a model that reads pictures, too
    of_embeddings = {"vocab_size", "hidden_size"} if quantization == "fp8" else set()
    if missing := {"num_attention_heads", "num_hidden_layers", *of_embeddings} - config.keys():
        raise UserError(
            f"{where}/config.json has no {', '.join(sorted(missing))}: only decoder language models can be laid "
            f"out over GPUs"
        )
    if quantization and (stored_as := whole.get("quantization_config")):
        method = stored_as.get("quant_method", "unknown")
        raise UserError(f"{where} is quantised already ({method}): leave teacher.quantization empty")
    if quantization == "fp8":
        kept = 2 * 2 * config["vocab_size"] * config["hidden_size"]
        stored = min(stored, kept + max(0, stored - kept) // 2)
    return ModelShape(
        weight_bytes=stored,
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        layers=config["num_hidden_layers"],
    )


def layouts(shape: ModelShape, gpus: int, room: float) -> list[Layout]:
    """The ways one copy of the model fits on exactly `gpus` GPUs with `room` bytes each for weights, most
    tensor-parallel first.

    Tensor parallelism splits every layer: its degree divides the attention heads, and divides or is a multiple of the
    key-value heads. It needs traffic in each layer, so it stays within 8 GPUs. Pipeline parallelism splits the layers
    and takes the rest.
    """
    found = []
    for tensor in range(min(gpus, 8), 0, -1):
        pipeline = gpus // tensor
        splits_heads = shape.heads % tensor == 0 and (shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0)
        # the largest stage's; rounding up covers the embeddings
        share = math.ceil(shape.layers / pipeline) / shape.layers / tensor
        if gpus % tensor == 0 and splits_heads and pipeline <= shape.layers and shape.weight_bytes * share <= room:
            found.append(Layout(tensor, pipeline, 1))
    return found


def plan(shape: ModelShape, memory: list[int], share: float) -> Layout:
    """As many copies of the model as fit on GPUs with this much memory, each spread over as many GPUs as then fall to
    it. An engine takes `share` of each GPU's memory (`runtime.gpu_memory_share`).

    Raises UserError where the model does not fit at all.
    """
    room = min(memory) * share * (1 - KV_SHARE) - ACTIVATIONS
    needed = next((gpus for gpus in range(1, len(memory) + 1) if layouts(shape, gpus, room)), None)
    if needed is None:
        raise UserError(
            f"a model of {shape.weight_bytes / 2**30:.0f} GiB does not fit on {len(memory)} GPU(s) of "
            f"{min(memory) / 2**30:.0f} GiB: "
            "use more GPUs, a smaller or quantised model, or a larger runtime.gpu_memory_share"
        )
    copies = len(memory) // needed
    best = next(found for gpus in range(len(memory) // copies, 0, -1) for found in layouts(shape, gpus, room))
    return Layout(best.tensor, best.pipeline, copies)
