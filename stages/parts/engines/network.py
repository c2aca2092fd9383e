"""Addresses on this machine."""

import errno
import os
import socket

from stages.parts.run.errors import UserError

HOST = "127.0.0.1"


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
