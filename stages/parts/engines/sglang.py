"""SGLang as an engine: its command line, its own request keys, its words for errors.

Checked against the parser and the request types of SGLang 0.5.23 (tests/engines/test_sglang.py); not yet run on a GPU.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.parts.engines.engine import Launch, OwnEngineErrors, refuse_trained_modules
from stages.parts.run.errors import UserError
from stages.parts.run.machine import HOST
from stages.parts.task.answer import AnswerForm

REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = REPOSITORY / ".venv-sglang/bin/python"  # its own: it pins another torch than vLLM does
INSTALL = "python3 -m venv .venv-sglang && .venv-sglang/bin/pip install sglang==0.5.23"


ACTIVATION_SHARE = 0.05  # of a GPU's memory


class Sglang(OwnEngineErrors):
    """SGLang's OpenAI server (https://docs.sglang.ai), on GPUs alone: its PyPI wheels have no CPU kernels."""

    name = "sglang"
    health = "/health"
    max_alternatives = 20  # OpenAI's limit; it has none of its own

    def command(self, launch: Launch) -> list[str]:
        layout = launch.layout
        if layout is None:
            raise UserError("engine.kind sglang needs an NVIDIA GPU, and a student of the hub: set engine.kind to vllm")
        if not PYTHON.is_file():
            raise UserError(f"SGLang is not installed: {INSTALL}")
        # adds the key, which other users could read here
        line = [str(PYTHON), "-m", "stages.parts.engines.sglang_server"]
        line += [
            "--model-path",
            str(launch.model),
            "--served-model-name",
            launch.name,
            "--host",
            HOST,
            "--port",
            str(launch.port),
        ]
        line += ["--load-format", "safetensors"]  # never a pickle
        line += ["--sampling-defaults", "openai", "--log-level-http", "warning", "--dtype", "bfloat16"]
        line += ["--tensor-parallel-size", str(layout.tensor), "--pipeline-parallel-size", str(layout.pipeline)]
        line += ["--data-parallel-size", str(layout.copies)]
        # Of what is free when it starts, where vLLM's is of the whole; activations and CUDA graphs come on top.
        of_free = (launch.memory_share - ACTIVATION_SHARE) / max(launch.free_share, launch.memory_share)
        line += ["--mem-fraction-static", f"{of_free:.3f}"]
        if launch.precision.weights:
            line += ["--quantization", launch.precision.weights]
        if launch.precision.kv_cache == "fp8":
            line += ["--kv-cache-dtype", "fp8_e4m3"]
        if launch.max_model_len:
            line += ["--context-length", str(launch.max_model_len)]
        if launch.adapters:
            refuse_trained_modules(launch.adapters.values(), "SGLang")  # it would leave them out and say nothing
            # A batch holds the base's queries beside the adapters': one place more than there are adapters. Ranks are
            # read from them.
            line += ["--enable-lora", "--max-loras-per-batch", str(len(launch.adapters) + 1), "--lora-paths"]
            line += [f"{adapter}={folder}" for adapter, folder in launch.adapters.items()]
        return line

    def environment(self, launch: Launch) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))  # for sglang_server
        return {"PYTHONPATH": path, "SGLANG_SERVER_KEY": launch.key, "CUDA_VISIBLE_DEVICES": launch.devices}

    def adapter_model(self, base: str, adapter: str) -> str:
        return f"{base}:{adapter}"  # the adapter's name alone is answered by the base, without an error

    def models(self, cards: Sequence[Mapping[str, Any]]) -> list[str]:
        return [self.adapter_model(card["parent"], card["id"]) if card.get("parent") else card["id"] for card in cards]

    def answer_options(self, form: AnswerForm | None) -> dict[str, Any]:
        """It takes log-probabilities after the grammar has ruled tokens out: they are shares among the allowed answers,
        where vLLM's are shares among all tokens. Calibrate with the engine that serves."""
        if form is None:
            return {"continue_final_message": True}
        grammar = {"ebnf": one_of(form.choices)} if form.choices else {"regex": form.regex}
        return {"continue_final_message": True, **grammar}

    def says_too_long(self, message: str) -> bool:
        return "context length" in message


def one_of(choices: Sequence[str]) -> str:
    """A grammar of exactly these strings, in the EBNF that xgrammar and llguidance read."""
    quoted = ('"' + re.sub(r'(["\\])', r"\\\1", choice) + '"' for choice in choices)
    return f"root ::= {' | '.join(quoted)}"
