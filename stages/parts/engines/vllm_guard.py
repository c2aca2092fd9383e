"""Close vLLM's routes that take queries without its key: it checks the key under /v1 and a few more prefixes alone.

A file of its own, since vLLM imports it in the engine's process: it must not bring this project's imports there.
"""

from collections.abc import Awaitable, Callable
from typing import Any

OPEN = ("/health", "/metrics", "/v1/")


class OnlyOpenAI:
    """ASGI middleware, for vLLM's --middleware: 404 for every path but health, metrics and OpenAI's protocol."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and not scope["path"].removeprefix(scope.get("root_path", "")).startswith(OPEN):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)
