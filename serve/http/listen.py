"""An app on its port, beside the engine that it needs."""

import asyncio

import uvicorn
from starlette.types import ASGIApp

from serve.supervisor import Supervisor
from stages.parts.engines.process import EngineProcess
from stages.parts.run.params import Serve

# longer than load balancers keep idle connections, so that none sends a query into one that is closing
KEEP_ALIVE_S = 75


async def listen(app: ASGIApp, supervisor: Supervisor, settings: Serve, path: str) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted and take the engine down; `path` is what the user is
    told. Raises UserError or EngineError where the engine never comes up."""
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
    telling = asyncio.create_task(tell_when_ready(supervisor, server, path))
    keeping.add_done_callback(lambda _: setattr(server, "should_exit", True))  # an engine that never came up
    try:
        await server.serve()
    finally:
        telling.cancel()
        keeping.cancel()
        if isinstance(supervisor.engine, EngineProcess):
            supervisor.engine.stop()
    await asyncio.wait([keeping])
    if not keeping.cancelled():
        keeping.result()  # raises why the engine never came up


async def tell_when_ready(supervisor: Supervisor, server: uvicorn.Server, path: str) -> None:
    await supervisor.was_ready.wait()
    while not server.started:
        await asyncio.sleep(0.05)
    print(f"serving on http://{server.config.host}:{server.config.port}{path}", flush=True)
