"""This machine: its ports, its GPUs, and processes that end when they should."""

import errno
import os
import shutil
import signal
import socket
import subprocess

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


def gpu_memory() -> list[int]:
    """Return the bytes of memory of each NVIDIA GPU; raise UserError if there is none."""
    memory: list[int] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        memory = [int(line) * 2**20 for line in answer.stdout.split()] if answer.returncode == 0 else []
    if not memory:
        raise UserError(
            "this profile needs an NVIDIA GPU and nvidia-smi finds none: use profile=embedded, or a machine with GPUs"
        )
    return memory


def end_on_sigterm() -> None:
    """Make SIGTERM end the process as an exception does, so that `with` blocks shut engines down."""

    def terminated(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)


def dying_with_parent() -> list[str]:
    """Return a command prefix that ends it when this process is killed, even by SIGKILL (util-linux; or nothing)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
