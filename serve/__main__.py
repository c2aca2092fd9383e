"""Serve the pair that `optimize` chose: its engine, and the program behind HTTP.

python -m serve [--host 127.0.0.1] [--port 8000]
"""

import argparse
import asyncio
import logging
import sys

import uvicorn
import uvloop
from pydantic import ValidationError

from serve.http.app import create_app
from serve.http.keys import read_keys
from serve.service import Service
from serve.student import Student, load_student, pass_a_query
from serve.supervisor import Supervisor
from stages.parts.engines.client import EngineError, engine_client
from stages.parts.engines.network import check_port
from stages.parts.engines.process import EngineProcess
from stages.parts.run.errors import UserError
from stages.parts.run.params import Serve, load_params
from stages.parts.run.processes import end_on_sigterm

KEEP_ALIVE_S = 75  # longer than load balancers keep idle connections, so that none sends a query into one that is closing


async def serve(student: Student, settings: Serve, keys: list[str]) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted and take the engine down. Raises where the engine never comes up."""
    async with engine_client(student.engine.served, settings.timeout_s) as client:
        supervisor = Supervisor(student.engine, lambda: pass_a_query(student, client))
        service = Service(student.classifier, client, supervisor, settings.queue, settings.cached_answers)
        app = create_app(service, keys, settings.examples)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=settings.timeout_s,
            timeout_keep_alive=KEEP_ALIVE_S,
            server_header=False,
        )
        server = uvicorn.Server(config)
        keeping = asyncio.create_task(supervisor.run())
        telling = asyncio.create_task(tell_when_ready(supervisor, server))
        keeping.add_done_callback(lambda _: setattr(server, "should_exit", True))  # an engine that never came up
        try:
            await server.serve()
        finally:
            telling.cancel()
            keeping.cancel()
            if isinstance(student.engine, EngineProcess):
                student.engine.stop()
        await asyncio.wait([keeping])
        if not keeping.cancelled():
            keeping.result()  # raises why the engine never came up


def changed(settings: Serve, wanted: dict[str, object]) -> Serve:
    """The settings, overridden by the command line's; raises UserError for one that is not valid."""
    try:
        return Serve.model_validate(settings.model_dump() | wanted)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from None


async def tell_when_ready(supervisor: Supervisor, server: uvicorn.Server) -> None:
    await supervisor.was_ready.wait()
    while not server.started:
        await asyncio.sleep(0.05)
    print(f"serving on http://{server.config.host}:{server.config.port}/classify_intent", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__.splitlines()[0])
    parser.add_argument("--host", help="address to listen on (default: serve.host of params.yaml); keys are needed unless it is loopback")
    parser.add_argument("--port", type=int, help="port to listen on (default: serve.port of params.yaml)")
    wanted = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    end_on_sigterm()
    try:
        params = load_params()
        settings = changed(params.serve, wanted)
        keys = read_keys(settings.host)
        check_port(settings.port, settings.host)
        uvloop.run(serve(load_student(params), settings, keys))
    except (UserError, EngineError) as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
