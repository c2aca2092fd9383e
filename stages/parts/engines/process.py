"""An engine of our own: a process that is started, waited for, and ended with its workers, whatever happens to this
one.
"""

import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from stages.parts.engines.engine import AdapterSlots, Engine, EngineKind, Launch, Precision, ServedModel, served_name
from stages.parts.engines.layout import model_shape, plan
from stages.parts.engines.sglang import Sglang
from stages.parts.engines.vllm import Vllm
from stages.parts.run.errors import UserError
from stages.parts.run.machine import HOST, Gpu, bypass_proxy, check_port, dying_with_parent, free_port, visible_gpus
from stages.parts.run.params import EngineName, Runtime
from stages.parts.run.paths import cache
from stages.parts.run.progress import Progress

KINDS: Mapping[EngineName, EngineKind] = {"vllm": Vllm(), "sglang": Sglang()}  # by their names in params.yaml
LOADED_PER_S = 100 * 10**6  # bytes of weights, from a slow disk: on top of runtime.engine_start_s
LOG_LINES = 15  # of a failed engine's log that the user sees if it holds no exception
CAUSE_LINES = 4  # of an exception's message


@dataclass(frozen=True)
class ModelToServe:
    """A model in `folder` for an engine, under `name` (None: one of its weights), with adapters beside it and slots for
    more.
    """

    folder: Path
    name: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    slots: AdapterSlots | None = None
    on_gpus: bool = False
    max_model_len: int | None = None
    precision: Precision = field(default_factory=Precision)


class EngineProcess:
    """One engine: its command line, and its process while it runs."""

    def __init__(self, kind: EngineKind, launch: Launch, served: ServedModel, patience_s: int) -> None:
        self.line = kind.command(launch)
        self.environment = kind.environment(launch)
        self.served = served
        self.patience_s = patience_s
        self.health = f"http://{HOST}:{launch.port}{kind.health}"
        self.log = cache() / "logs" / f"{kind.name}-{launch.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, from a thread that outlives it: the engine ends with the thread that started it
        (dying_with_parent).
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        bypass_proxy(HOST)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with self.log.open("ab" if self.process else "wb") as output:  # a restart keeps the dead engine's output
            self.process = subprocess.Popen(
                [*dying_with_parent(), *self.line],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **offline, **self.environment},
                start_new_session=True,
            )
        return self.process

    def wait_until_up(self) -> None:
        """Poll the engine's health; raises UserError, with the root cause from its log, when it ends or `patience_s`
        have passed.
        """
        assert self.process, "start the engine first"
        name, started = self.served.kind.name, time.monotonic()
        with Progress(f"starting {name}") as progress:
            while True:
                if self.process.poll() is not None:
                    code = self.process.returncode
                    killed = ", killed, most likely for memory" if code == -signal.SIGKILL else ""
                    raise UserError(
                        f"{name} ended with code {code}{killed} before it was up; from {self.log}:\n"
                        f"{root_cause(self.log)}"
                    )
                if time.monotonic() - started > self.patience_s:
                    raise UserError(
                        f"{name} was not up after {self.patience_s} s (runtime.engine_start_s); from {self.log}:\n"
                        f"{root_cause(self.log)}"
                    )
                try:
                    if requests.get(self.health, timeout=2).ok:
                        return
                except requests.RequestException:
                    pass
                progress.update(0)
                time.sleep(0.2)

    def stop(self) -> None:
        """End the engine and its workers: first politely, by force after 20 s or when a second signal interrupts that.
        Also the workers of an engine that is dead already."""
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


def prepare(kind: EngineKind, model: ModelToServe, runtime: Runtime) -> EngineProcess:
    """Return an engine for a model, not started yet; raises UserError if there are no GPUs, or the port is taken."""
    gpus = visible_gpus() if model.on_gpus else []
    layout, patience_s, devices, free = None, runtime.engine_start_s, "", 1.0
    if gpus:
        model.precision.check(gpus)
        shape = model_shape(model.folder, model.precision.weights)
        layout = plan(shape, [gpu.memory for gpu in gpus], runtime.gpu_memory_share)
        patience_s += shape.weight_bytes // LOADED_PER_S
        devices, free = engine_devices(gpus), min(gpu.free / gpu.memory for gpu in gpus)
    if runtime.port:
        check_port(runtime.port)
    base = model.name or served_name("base", model.folder)
    loaded = {key: served_name(key, folder) for key, folder in model.adapters.items()}
    launch = Launch(
        model=model.folder,
        name=base,
        adapters={loaded[key]: folder for key, folder in model.adapters.items()},
        port=runtime.port or free_port(),
        key=secrets.token_urlsafe(),
        layout=layout,
        max_model_len=model.max_model_len,
        kv_cache_gib=runtime.kv_cache_gib,
        precision=model.precision,
        slots=model.slots,
        devices=devices,
        memory_share=runtime.gpu_memory_share,
        free_share=free,
    )
    names = {"base": base} | {key: kind.adapter_model(base, adapter) for key, adapter in loaded.items()}
    served = ServedModel(f"http://{HOST}:{launch.port}/v1", names, launch.key, kind, layout.copies if layout else 1)
    return EngineProcess(kind, launch, served, patience_s)


def engine_devices(gpus: Sequence[Gpu]) -> str:
    """Return CUDA_VISIBLE_DEVICES for an engine, as indices; raise UserError for MIG slices, which have none.

    A single slice that CUDA shows by itself needs no name.
    """
    if not any(gpu.is_slice for gpu in gpus):
        return ",".join(str(gpu.index) for gpu in gpus)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        raise UserError(
            "engines can't be given a MIG slice by name: unset CUDA_VISIBLE_DEVICES in a container that has one slice, "
            "or use a whole GPU"
        )
    return str(gpus[0].index)


@contextmanager
def running(engine: Engine) -> Iterator[ServedModel]:
    """Run an engine until the block ends; raises UserError if it does not come up. One that was started before is
    waited for; one that is not ours is left alone."""
    if not isinstance(engine, EngineProcess):
        yield engine.served
        return
    if not engine.process:
        engine.start()
    try:
        engine.wait_until_up()
        yield engine.served
    finally:
        engine.stop()


# A line of the engine's core or of a worker is "(EngineCore pid=63) ERROR 11-28 19:25:37 [core.py:15] ValueError: ...".
# The same exception follows without the logger's part, and then the server's own, "See root cause above".
LOGGER = re.compile(r"^(\([^)]*pid=\d+\) )?((ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] )?")
EXCEPTION = re.compile(r"^([\w.]*(Error|Exception)|[\w-]+\.py: error): .*\S")
NO_CAUSE = re.compile(r"root cause|initialization failed|proc\(s\)|died unexpectedly")


def root_cause(log: Path) -> str:
    """Return the first exception in an engine's log, at most CAUSE_LINES lines of it; the log's end if there is none.

    vLLM's processes die one after the other: the first exception is the reason, later ones say that a process ended.
    """
    lines = [LOGGER.sub("", line) for line in log.read_text(errors="replace").splitlines()]
    for place, line in enumerate(lines):
        if EXCEPTION.match(line) and not NO_CAUSE.search(line):
            message = [line]
            for more in lines[place + 1 : place + CAUSE_LINES]:  # pydantic's go on
                if not more.strip() or not more.startswith("  ") or more.lstrip().startswith("File "):
                    break
                message.append(more)
            return "\n".join(message)
    return "\n".join(lines[-LOG_LINES:])
