"""Serve a student behind HTTP: the one that `serve.model` names, or a student's folder.

python -m serve [--model encoder] [--host 127.0.0.1] [--port 8000]
python -m serve --student models/encoder    # takes requirements-serve.lock alone
"""

import argparse
import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from pydantic import ValidationError

from serve.backend import Backend, InProcess
from serve.http.app import create_app
from serve.http.keys import read_keys
from serve.http.server import listen, serving_command
from serve.promoted import follow_promotions
from serve.service import Service
from stages.parts.run.errors import UserError
from stages.parts.run.machine import check_port
from stages.parts.run.params import Params, Serve, load_params
from stages.parts.students.local import LocalClassifier, local_student
from stages.parts.students.prediction import QueryClassifier

if TYPE_CHECKING:
    from serve.traffic import Traffic


def open_traffic(params: Params, service: Service) -> AbstractAsyncContextManager["Traffic | None"]:
    """Return what follows an answer; nothing, and none of its imports, if params.yaml asks for nothing of it."""
    if not params.serve.follows_answers:
        return nullcontext()
    from serve.traffic import traffic

    return traffic(params, service.classifier, service.metrics.registry)


async def open_backend(
    params: Params, local: LocalClassifier | None, ends: AsyncExitStack
) -> tuple[QueryClassifier, Backend]:
    """Return the student and what computes its answers; `ends` closes its connections."""
    if local:
        return local, InProcess(local)
    # Seconds of imports, and packages that an in-process student does without.
    from serve.student import EngineClassifier, check_engine, load_served_student
    from serve.supervisor import Supervisor
    from stages.parts.engines.http_client import engine_client

    student = load_served_student(params)
    client = await ends.enter_async_context(engine_client(student.engine.served, params.serve.timeout_s))
    return EngineClassifier(student.classifier, client), Supervisor(
        student.engine, lambda: check_engine(student, client)
    )


async def serve_student(params: Params, keys: list[str], local: LocalClassifier | None, follow: bool) -> None:
    """Serve until SIGINT or SIGTERM, then finish the accepted requests and stop the engine. With `follow` the student
    is swapped if another is promoted. Raises UserError or EngineError if no query can ever be answered.
    """
    settings = params.serve
    async with AsyncExitStack() as ends:
        classifier, backend = await open_backend(params, local, ends)
        service = Service(classifier, backend, settings.queue, settings.cached_answers)
        async with open_traffic(params, service) as service.traffic:
            if follow:
                following = asyncio.create_task(follow_promotions(service, params))
                ends.callback(following.cancel)
            await listen(create_app(service, keys, settings.examples), backend, settings, "/classify_intent")


def overridden(settings: Serve, options: dict[str, object]) -> Serve:
    """Return the settings with those of the command line; raises UserError for one that is not valid."""
    try:
        return Serve.model_validate(settings.model_dump() | options)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="auto, encoder, decoder or linear (default: serve.model of params.yaml)")
    which.add_argument("--student", type=Path, help="the folder of an encoder or linear student")
    parser.add_argument(
        "--host",
        help="address to listen on (default: serve.host of params.yaml); keys are needed unless it is loopback",
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: serve.port of params.yaml)")
    options = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    folder: Path | None = options.pop("student", None)
    with serving_command():
        params = load_params()
        settings = overridden(params.serve, options)
        keys = read_keys(settings.host)
        check_port(settings.port, settings.host)
        params = params.model_copy(update={"serve": settings})
        follow = settings.model == "auto" and not folder
        uvloop.run(serve_student(params, keys, local_student(params, folder), follow))


if __name__ == "__main__":
    main()
