"""Serve the pair that `optimize` chose: an engine for its weights, and its program behind HTTP.

python -m serve [--host 127.0.0.1] [--port 8000]
"""

import argparse
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

import uvloop
from pydantic import ValidationError

from serve.http.app import create_app
from serve.http.keys import read_keys
from serve.http.server import listen, serving_command
from serve.service import Service
from serve.student import ServedStudent, check_engine, load_served_student
from serve.supervisor import Supervisor
from stages.parts.engines.http_client import engine_client
from stages.parts.run.errors import UserError
from stages.parts.run.machine import check_port
from stages.parts.run.params import Params, Serve, load_params

if TYPE_CHECKING:
    from serve.traffic import Traffic


def open_traffic(params: Params, service: Service) -> AbstractAsyncContextManager["Traffic | None"]:
    """Return what follows an answer; nothing, and none of its imports, if params.yaml asks for nothing of it."""
    if not params.serve.queries_teacher and params.serve.keep == "none" and not params.serve.shadow:
        return nullcontext()
    from serve.traffic import traffic

    return traffic(params, service.classifier, service.metrics.registry)


async def serve_student(student: ServedStudent, params: Params, keys: list[str]) -> None:
    """Serve until SIGINT or SIGTERM, then finish the accepted requests and stop the engine. Raises UserError or
    EngineError if the engine never comes up.
    """
    settings = params.serve
    async with engine_client(student.engine.served, settings.timeout_s) as client:
        supervisor = Supervisor(student.engine, lambda: check_engine(student, client))
        service = Service(student.classifier, client, supervisor, settings.queue, settings.cached_answers)
        async with open_traffic(params, service) as service.traffic:
            await listen(create_app(service, keys, settings.examples), supervisor, settings, "/classify_intent")


def overridden(settings: Serve, options: dict[str, object]) -> Serve:
    """Return the settings with those of the command line; raises UserError for one that is not valid."""
    try:
        return Serve.model_validate(settings.model_dump() | options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--host",
        help="address to listen on (default: serve.host of params.yaml); keys are needed unless it is loopback",
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: serve.port of params.yaml)")
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    with serving_command():
        params = load_params()
        settings = overridden(params.serve, options)
        keys = read_keys(settings.host)
        check_port(settings.port, settings.host)
        params = params.model_copy(update={"serve": settings})
        uvloop.run(serve_student(load_served_student(params), params, keys))


if __name__ == "__main__":
    main()
