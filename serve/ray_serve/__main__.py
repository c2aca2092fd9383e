"""Serve on Ray: the LLM endpoint under /llm and the classifier beside it, on a Ray of this machine's own.

python -m serve.ray_serve [--host 127.0.0.1] [--port 8000]
"""

import argparse
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions

from serve.http.keys import is_loopback, read_keys
from serve.http.server import http_address, serving_command
from serve.ray_serve.apps import RayEndpoint, Where, classifier, llm
from serve.student import ENGINE_KEY
from stages.parts.run.errors import UserError
from stages.parts.run.machine import check_port
from stages.parts.run.params import load_params

CPUS = 8  # that Ray may assign, whatever the machine has: a replica that waits for one waits for ever
LOGS = "/tmp/ray/session_latest/logs/serve"


@contextmanager
def ray_ended() -> Iterator[None]:
    """Stop Ray with the block; raises UserError for what it could not start."""
    try:
        yield
    except (RayError, RuntimeError, ConnectionError) as error:  # a failed deployment is a RuntimeError
        raise UserError(f"Ray failed: {str(error).splitlines()[0]}; its logs are in {LOGS}") from None
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.ray_serve", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1); others need keys"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    given = parser.parse_args()
    os.environ.setdefault(ENGINE_KEY, secrets.token_urlsafe())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = str(Path.cwd())
    with serving_command(), ray_ended():
        load_params()
        read_keys(given.host)
        check_port(given.port, given.host)
        endpoint = RayEndpoint(
            folder=folder, api_base=f"http://127.0.0.1:{given.port}/llm/v1", open=not is_loopback(given.host)
        )
        ray.init(address="local", num_cpus=max(CPUS, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
        serve.start(http_options=HTTPOptions(host=given.host, port=given.port))
        serve.run(llm(Where(folder=folder)), name="llm", route_prefix="/llm")
        serve.run(classifier(endpoint), name="classifier", route_prefix="/")
        address = http_address(given.host, given.port)
        print(f"serving on {address}/classify_intent, the LLM endpoint on /llm/v1", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
