"""Before any handler: bodies that are too large or too slow are refused, a client that hangs up takes its work with it,
and every request is counted.
"""

import asyncio
import time

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.service import ServiceMetrics

MAX_BODY = 2**20  # bytes
MAX_BODY_S = 10  # from the end of the headers to the end of the body
HUNG_UP = 499  # nginx's status in metrics for a client that closed the connection before its answer


class Guard:
    """ASGI middleware; plain ASGI, since Starlette's BaseHTTPMiddleware costs more than all the rest of the app."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, received, answered, gone = time.perf_counter(), 500, 0, False, False
        body_end = asyncio.get_running_loop().time() + MAX_BODY_S
        handling = asyncio.current_task()
        assert handling
        # Waits for the only message that can follow a whole body: the client's hang-up.
        watching: asyncio.Future[Message] | None = None

        def hang_up(watched: asyncio.Future[Message]) -> None:
            nonlocal gone
            failed = watched.cancelled() or watched.exception()
            if not answered and not failed and watched.result()["type"] == "http.disconnect":
                gone = True
                handling.cancel()

        async def limited_receive() -> Message:
            nonlocal received, watching
            if watching:
                return await asyncio.shield(watching)
            try:
                async with asyncio.timeout_at(body_end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                # the one kind of exception that FastAPI lets through here
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
            if message["type"] == "http.request" and not message.get("more_body", False):
                watching = asyncio.ensure_future(receive())
                watching.add_done_callback(hang_up)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                answered = True
            await send(message)

        try:
            await self.app(scope, limited_receive, watched_send)
        except asyncio.CancelledError:
            if not gone:  # the service itself ends
                raise
            handling.uncancel()
            status = HUNG_UP
        except ClientDisconnect:  # in the middle of a body
            status = HUNG_UP
        finally:
            if watching:
                watching.cancel()
            route = scope.get("route")
            path = route.path if route else "other"  # a path nobody defined must not make a new series
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
