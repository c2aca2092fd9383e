"""Asking the engine: one pool of connections, a time limit, and errors that say whose fault it is."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from stages.parts.engines.engine import ServedModel


class EngineError(Exception):
    """The engine gave no answer: it is down, or failed."""


class EngineTimeout(EngineError):
    """No answer within the time limit."""


class QueryRefused(EngineError):
    """The engine won't take this query: it has too many tokens."""


class EngineClient:
    """Requests to an engine, on a session that brings its key."""

    def __init__(self, session: aiohttp.ClientSession, served: ServedModel) -> None:
        self.session = session
        self.api_base = served.api_base
        self.kind = served.kind

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a chat completion request; raises EngineError. Never repeats the query in an error."""
        try:
            async with self.session.post(f"{self.api_base}/chat/completions", json=body) as response:
                if response.status == 400 and self.kind.says_too_long(await response.text()):
                    raise QueryRefused("the query has too many tokens for the model")
                refuse(response.status)
                found: dict[str, Any] = await response.json()
                return found
        except TimeoutError:
            raise EngineTimeout("the engine did not answer in time") from None
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            raise EngineError(f"the engine failed: {type(error).__name__}") from None

    async def models(self) -> list[str]:
        """The names that the engine serves; raises EngineError."""
        try:
            async with self.session.get(f"{self.api_base}/models") as response:
                refuse(response.status)
                return self.kind.models((await response.json())["data"])
        except (TimeoutError, aiohttp.ClientError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise EngineError(f"the engine failed: {type(error).__name__}") from None


def refuse(status: int) -> None:
    """Raise EngineError for any status but 200."""
    if status == 401:
        raise EngineError("the engine wants another key than ENGINE_API_KEY holds")
    if status != 200:
        raise EngineError(f"the engine answered {status}; its log says why")


@asynccontextmanager
async def engine_client(served: ServedModel, timeout_s: float) -> AsyncIterator[EngineClient]:
    """A client whose connections are kept and shared until the block ends."""
    # No limit: the app's own queue is one. vLLM closes a connection that was idle for 5 s; a query must not be on its way then.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    headers = {"Authorization": f"Bearer {served.key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(timeout_s)) as session:
        yield EngineClient(session, served)
