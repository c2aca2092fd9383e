"""A vLLM server for as long as a stage needs it: its command line, its start, its end."""

import errno
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from stages.parts.errors import UserError
from stages.parts.gpus import Plan, gpu_memory, model_shape, plan
from stages.parts.params import Runtime
from stages.parts.paths import cache
from stages.parts.records import folder_sha256

LOG_LINES = 15  # of a failed engine's log that the user sees
HOST = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ServedModel:
    """Where a vLLM answers: `api_base` ends in /v1; `names` maps "base" and each adapter to the name it is served under; it wants `key`."""

    api_base: str
    names: Mapping[str, str]
    key: str


def served_name(kind: str, folder: Path) -> str:
    """A name that changes with the weights: caches go by the name alone."""
    return f"{kind}-{folder_sha256(folder)[:12]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def ask_directly(host: str) -> None:
    """Keep this process's requests to a host, which carry an engine's key, from a proxy that the environment names."""
    excepted = [name for name in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",") if name]
    if host not in excepted:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*excepted, host])


def check_port(port: int, host: str = HOST) -> None:
    """Raise UserError where the address is not this machine's or something listens on it already."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: stop what listens there, or choose another port") from None
        raise UserError(f"can't listen on {host}, port {port}: {error.strerror}") from None


class Engine:
    """One vLLM: its command line, and its process while it runs. Its key is in its environment, where other users can't read it."""

    def __init__(self, line: Sequence[str], served: ServedModel, port: int, runtime: Runtime) -> None:
        self.line = line
        self.served = served
        self.runtime = runtime
        self.health = f"http://{HOST}:{port}/health"
        self.log = cache() / "logs" / f"vllm-{port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process. Call it in a thread that lives as long as the engine shall: with that thread it ends (dying_with_parent)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ask_directly(HOST)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),  # for engine_guard
            "VLLM_API_KEY": self.served.key,
            "VLLM_HOST_IP": HOST,  # its processes talk to each other over sockets: nobody else shall
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_CPU_KVCACHE_SPACE": str(self.runtime.kv_cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(cache() / "vllm"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        with self.log.open("ab" if self.process else "wb") as output:  # a restart keeps what the dead engine said
            self.process = subprocess.Popen(
                [*dying_with_parent(), *self.line], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        return self.process

    def wait_until_up(self) -> None:
        """Poll the engine's health; raises UserError, with the end of its log, when it ends or runtime.engine_start_s have passed."""
        assert self.process, "start the engine first"
        started, patience_s = time.monotonic(), self.runtime.engine_start_s
        with tqdm(desc="starting vLLM", bar_format="{desc} {elapsed}") as progress:
            while True:
                if self.process.poll() is not None:
                    code = self.process.returncode
                    raise UserError(f"vLLM ended with code {code} before it was up; the end of {self.log}:\n{tail(self.log)}")
                if time.monotonic() - started > patience_s:
                    raise UserError(
                        f"vLLM was not up after {patience_s} s (runtime.engine_start_s); the end of {self.log}:\n{tail(self.log)}"
                    )
                try:
                    if requests.get(self.health, timeout=2).ok:
                        return
                except requests.RequestException:
                    pass
                progress.update()
                time.sleep(0.5)

    def stop(self) -> None:
        """End the engine and its workers: first politely, by force after 20 s or when a second signal interrupts that. Also the workers of
        an engine that is dead already."""
        if not self.process:
            return
        try:
            self.signal(signal.SIGTERM, patience_s=20)
        finally:
            self.signal(signal.SIGKILL, patience_s=5)

    def signal(self, sign: signal.Signals, patience_s: float) -> None:
        assert self.process
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, sign)
            self.process.wait(patience_s)


def command(
    model: Path, name: str, adapters: Mapping[str, Path], *, port: int, lora_rank: int, layout: Plan | None, max_model_len: int | None
) -> list[str]:
    """vLLM's command line. `layout` None means a CPU. `python -m`, because vllm-cpu's own `vllm` command does not start."""
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    line += ["--model", str(model), "--served-model-name", name, "--host", HOST, "--port", str(port)]
    line += ["--load-format", "safetensors"]  # never a pickle
    line += ["--middleware", "stages.parts.engine_guard.OnlyOpenAI"]
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


def prepare(
    model: Path,
    adapters: Mapping[str, Path],
    runtime: Runtime,
    *,
    on_gpus: bool,
    name: str | None = None,
    lora_rank: int = 8,
    max_model_len: int | None = None,
) -> Engine:
    """An engine for a model (under `name`, or a name of its weights) and its adapters, not started yet; raises UserError where GPUs or
    the port are not to be had."""
    layout = plan(model_shape(model), gpu_memory()) if on_gpus else None
    if runtime.port:
        check_port(runtime.port)
    port = runtime.port or free_port()
    names = {"base": name or served_name("base", model)} | {key: served_name(key, folder) for key, folder in adapters.items()}
    by_name = {names[key]: folder for key, folder in adapters.items()}
    line = command(model, names["base"], by_name, port=port, lora_rank=lora_rank, layout=layout, max_model_len=max_model_len)
    return Engine(line, ServedModel(f"http://{HOST}:{port}/v1", names, secrets.token_urlsafe()), port, runtime)


@contextmanager
def running(engine: Engine) -> Iterator[ServedModel]:
    """Run an engine until the block ends; raises UserError if it does not come up."""
    engine.start()
    try:
        engine.wait_until_up()
        yield engine.served
    finally:
        engine.stop()


def dying_with_parent() -> list[str]:
    """A prefix that ends a command when this process is killed, even by SIGKILL (util-linux; nothing where it is missing)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def tail(log: Path) -> str:
    lines: Sequence[str] = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])
