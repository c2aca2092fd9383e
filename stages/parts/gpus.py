"""How to lay a model over the GPUs at hand: tensor parallel x pipeline parallel x copies."""

import json
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stages.parts.errors import UserError

USABLE = 0.90  # share of a GPU's memory that vLLM takes (its --gpu-memory-utilization)
KV_SHARE = 0.10  # of the usable memory, kept for the KV cache at the least
ACTIVATIONS = 4 * 2**30  # bytes a GPU, for activations and CUDA graphs


@dataclass(frozen=True)
class ModelShape:
    """What parallelism depends on: weight bytes, attention and key-value heads, layers."""

    weight_bytes: int
    heads: int
    kv_heads: int
    layers: int


@dataclass(frozen=True)
class Plan:
    """vLLM's --tensor-parallel-size, --pipeline-parallel-size and --data-parallel-size."""

    tensor: int
    pipeline: int
    copies: int


def gpu_memory() -> list[int]:
    """Bytes of memory of each NVIDIA GPU; raises UserError where there is none. Asked before anything large is downloaded."""
    found: list[int] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found = [int(line) * 2**20 for line in answer.stdout.split()] if answer.returncode == 0 else []
    if not found:
        raise UserError("this profile needs an NVIDIA GPU and nvidia-smi finds none: use profile=embedded, or a machine with GPUs")
    return found


def model_shape(folder: Path) -> ModelShape:
    """The shape of a downloaded model, from its config.json and the size of its safetensors."""
    config = json.loads((folder / "config.json").read_text())
    return ModelShape(
        weight_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
        layers=config["num_hidden_layers"],
    )


def layouts(shape: ModelShape, gpus: int, room: float) -> list[Plan]:
    """The ways one copy of the model fits on exactly `gpus` GPUs with `room` bytes each for weights, most tensor-parallel first.

    Tensor parallelism splits every layer: its degree divides the attention heads, and divides or is a multiple of the key-value heads.
    It needs traffic in each layer, so it stays within 8 GPUs. Pipeline parallelism splits the layers and takes the rest.
    """
    found = []
    for tensor in range(min(gpus, 8), 0, -1):
        pipeline = gpus // tensor
        splits_heads = shape.heads % tensor == 0 and (shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0)
        share = math.ceil(shape.layers / pipeline) / shape.layers / tensor  # the largest stage's; rounding up covers the embeddings
        if gpus % tensor == 0 and splits_heads and pipeline <= shape.layers and shape.weight_bytes * share <= room:
            found.append(Plan(tensor, pipeline, 1))
    return found


def plan(shape: ModelShape, memory: list[int]) -> Plan:
    """As many copies of the model as fit on GPUs with this much memory, each spread over as many GPUs as then fall to it.

    Raises UserError where the model does not fit at all.
    """
    room = min(memory) * USABLE * (1 - KV_SHARE) - ACTIVATIONS
    needed = next((gpus for gpus in range(1, len(memory) + 1) if layouts(shape, gpus, room)), None)
    if needed is None:
        raise UserError(
            f"a model of {shape.weight_bytes / 2**30:.0f} GiB does not fit on {len(memory)} GPU(s) of {min(memory) / 2**30:.0f} GiB: "
            "use more GPUs or a smaller model"
        )
    copies = len(memory) // needed
    best = next(found for gpus in range(len(memory) // copies, 0, -1) for found in layouts(shape, gpus, room))
    return Plan(best.tensor, best.pipeline, copies)
