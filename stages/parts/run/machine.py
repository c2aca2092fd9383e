"""This machine: its ports, its GPUs, and processes that end when they should."""

import csv
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import takewhile

import psutil

from stages.parts.run.errors import UserError

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def bypass_proxy(host: str) -> None:
    """Send this process's requests to a host, which carry an engine's key, past the environment's proxy."""
    excepted = [name for name in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",") if name]
    if host not in excepted:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*excepted, host])


def check_port(port: int, host: str = HOST) -> None:
    """Raise UserError if the address is not this machine's or something listens on it already."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: stop what listens there, or choose another port") from None
        raise UserError(f"can't listen on {host}, port {port}: {error.strerror}") from None


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU that this process may use, or a MIG slice of one.

    `memory` and `free` are bytes, `capability` is the compute capability, (8, 9) for example. `index` is nvidia-smi's,
    which is CUDA's as well under CUDA_DEVICE_ORDER=PCI_BUS_ID (stages/__init__.py).
    """

    index: int
    uuid: str
    name: str
    memory: int
    free: int
    capability: tuple[int, int]
    driver: str
    is_slice: bool = False


GPU_FIELDS = "index,uuid,name,memory.total,memory.free,compute_cap,driver_version,mig.mode.current"
SMI_S = 60
MIB, GIB = 2**20, 2**30


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that CUDA shows to this process, in CUDA's order; raise UserError if there is none.

    CUDA_VISIBLE_DEVICES counts as it does for CUDA: indices, UUIDs or beginnings of UUIDs. An entry that names no GPU
    hides itself and all after it, and an empty value hides all.
    """
    installed = installed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        # Slices are shown one at a time, and only if there is no whole GPU.
        visible = [gpu for gpu in installed if not gpu.is_slice] or installed[:1]
    else:
        named = (named_gpu(entry.strip(), installed) for entry in chosen.split(","))
        visible = [gpu for gpu in takewhile(bool, named) if gpu]
    if len({gpu.uuid for gpu in visible}) < len(visible):
        raise UserError(f"CUDA_VISIBLE_DEVICES={chosen!r} names a GPU twice: name each once")
    if not visible and installed:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={chosen!r} shows none of this machine's GPUs: unset it, or name them as "
            f"`nvidia-smi -L` does"
        )
    if not visible:
        raise UserError(
            "this profile needs an NVIDIA GPU and nvidia-smi finds none: use profile=embedded, or a machine with GPUs"
        )
    return visible


def named_gpu(entry: str, installed: list[Gpu]) -> Gpu | None:
    """Return what an entry of CUDA_VISIBLE_DEVICES names; of a GPU in MIG mode that is its first slice."""
    for gpu in installed:
        if entry == str(gpu.index) or (entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)):
            return gpu
    return None


def installed_gpus() -> list[Gpu]:
    """Return this machine's GPUs; a GPU in MIG mode as its slices."""
    gpus: list[Gpu] = []
    listed = nvidia_smi(f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits")
    rows = [
        row for row in csv.reader(listed.splitlines(), skipinitialspace=True) if len(row) == GPU_FIELDS.count(",") + 1
    ]
    slices = mig_slices() if any(row[-1] == "Enabled" for row in rows) else {}
    unified = psutil.virtual_memory()  # of GPUs that share the processor's memory and report none of their own
    for index, uuid, name, total, free, capability, driver, mig in rows:
        major, _, minor = capability.partition(".")
        gpu = Gpu(
            index=int(index),
            uuid=uuid,
            name=name,
            memory=mebibytes(total, f"memory of GPU {index}", unified.total),
            free=mebibytes(free, f"free memory of GPU {index}", unified.available),
            capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0),
            driver=driver,
        )
        if mig == "Enabled":
            for slice_uuid, memory in slices.get(gpu.index, []):
                gpus.append(replace(gpu, uuid=slice_uuid, memory=memory, free=memory, is_slice=True))
        else:
            gpus.append(gpu)
    return gpus


def mig_slices() -> dict[int, list[tuple[str, int]]]:
    """Return the UUID and the bytes of each MIG slice, by the index of its GPU."""
    slices: dict[int, list[tuple[str, int]]] = defaultdict(list)
    index = -1
    for line in nvidia_smi("-L").splitlines():
        if found := re.match(r"GPU (\d+):", line):
            index = int(found[1])
        # The profile's name holds the nominal gigabytes, of which about a twentieth is reserved.
        elif found := re.match(r"\s+MIG \S*?(\d+)gb\S*\s.*UUID: (MIG-[^)]+)\)", line):
            slices[index].append((found[2], int(int(found[1]) * 0.95 * GIB)))
    return slices


def mebibytes(value: str, what: str, unified: int) -> int:
    """Return a size of nvidia-smi in bytes; `unified` if it has none to report; raise UserError for an error."""
    if value in ("[N/A]", "[Not Supported]"):
        return unified
    if not value.isdigit():
        raise UserError(f"nvidia-smi reports {value} as the {what}: check the GPU and its driver")
    return int(value) * MIB


def nvidia_smi(*arguments: str) -> str:
    """Return the output of nvidia-smi; nothing if it is missing. Raises UserError, with its words, if it fails."""
    if not shutil.which("nvidia-smi"):
        return ""
    line = ["nvidia-smi", *arguments]
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False, timeout=SMI_S)
    except subprocess.TimeoutExpired:  # a GPU that fell off the bus
        raise UserError(
            f"this profile needs an NVIDIA GPU, and nvidia-smi does not answer within {SMI_S} s: check the driver"
        ) from None
    if done.returncode:
        words = (done.stdout.strip() or done.stderr.strip() or f"it ends with code {done.returncode}").splitlines()[0]
        raise UserError(
            f"this profile needs an NVIDIA GPU, and nvidia-smi fails ({words[:200]}): check the driver, or use "
            "profile=embedded"
        )
    return done.stdout


def end_on_sigterm() -> None:
    """Make SIGTERM end the process as an exception does, so that `with` blocks shut engines down."""

    def terminated(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)


def dying_with_parent() -> list[str]:
    """Return a command prefix that ends it when this process is killed, even by SIGKILL (util-linux; or nothing)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
