"""Before any handler: bodies that are too large or too slow are refused, and every request is counted."""

import asyncio
import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics import ServiceMetrics

MAX_BODY = 2**20  # bytes
MAX_BODY_S = 10  # from the request's head to the body's end


class Guard:
    """ASGI middleware; plain ASGI, since Starlette's BaseHTTPMiddleware costs more than all the rest of the app."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, read, complete = time.perf_counter(), 500, 0, False
        body_end = asyncio.get_running_loop().time() + MAX_BODY_S

        async def counted_receive() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()  # until the client goes
            try:
                async with asyncio.timeout_at(body_end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > MAX_BODY:
                # the one kind of exception that FastAPI lets through here
                raise HTTPException(413, "the body is too large")
            return message

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counted_receive, noted_send)
        finally:
            route = scope.get("route")
            path = route.path if route else "other"  # a path nobody defined must not make a new series
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
