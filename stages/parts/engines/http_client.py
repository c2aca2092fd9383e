"""One request to an engine: a pool of connections, a time limit, and errors by what they concern.

EngineError          no answer: the engine is down, or failed; a retry may help
├── EngineTimeout    no answer within the time limit
├── EngineBusy       too many requests at the moment
├── QueryRefused     this query has too many tokens
├── RequestRefused   this request's content, or a parameter that all requests share
└── EngineRefuses    every request: the key, the model's name, or no credit
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from yarl import URL

from stages.parts.engines.endpoint import HostedEndpoint, in_one_line, message_in
from stages.parts.engines.engine import ServedModel

JSON = {"Content-Type": "application/json"}


class EngineError(Exception):
    """The engine gave no answer: it is down, or failed. A retry may help."""


class EngineTimeout(EngineError):
    """No answer within the time limit."""


class EngineBusy(EngineError):
    """Too many requests for it at the moment. `retry_after_s`: when it wants the next one, if it names a time."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueryRefused(EngineError):
    """The engine won't take this query: it has too many tokens."""


class RequestRefused(EngineError):
    """The engine finds fault with this request: its content, or a parameter that all requests share."""


class EngineRefuses(EngineError):
    """The engine would refuse every request: the key, the model's name, or no credit."""


class EngineClient:
    """Requests to an engine, on a session that brings its key."""

    def __init__(self, session: aiohttp.ClientSession, served: ServedModel) -> None:
        self.session = session
        self.api_base = served.api_base
        self.url = URL(f"{served.api_base}/chat/completions")  # once, not a query
        self.kind = served.kind

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response to a chat completion request; raises EngineError, whose message never repeats the query
        unless the engine does.
        """
        try:
            async with self.session.post(self.url, data=orjson.dumps(body), headers=JSON) as response:
                if response.status != 200:
                    raise self.failure(response.status, response.headers, await response.text(errors="replace"))
                content = await response.read()
        except TimeoutError:
            raise EngineTimeout("the engine did not answer in time") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineError(f"the engine failed: {in_one_line(f'{type(error).__name__}: {error}')}") from None
        try:
            found = orjson.loads(content)  # a third of the json module's time for 20 log-probabilities
        except ValueError:
            raise EngineError(
                f"the answer is no JSON; it begins with {in_one_line(content[:60].decode(errors='replace'))!r}"
            ) from None
        if not isinstance(found, dict) or "choices" not in found:
            # Gateways answer 200 with {"error": ...} when the model behind them fails.
            raise EngineError(f"the answer is no chat completion: {message_in(content.decode(errors='replace'))}")
        return found

    async def models(self) -> list[str]:
        """The names that the engine serves; raises EngineError."""
        try:
            async with self.session.get(f"{self.api_base}/models") as response:
                if response.status != 200:
                    raise self.failure(response.status, response.headers, await response.text(errors="replace"))
                return self.kind.models((await response.json())["data"])
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the engine failed: {type(error).__name__}") from None

    def failure(self, status: int, headers: Mapping[str, str], text: str) -> EngineError:
        """What a status other than 200 means."""
        if status == 400 and self.kind.says_too_long(text):
            return QueryRefused("the query has too many tokens for the model")
        if reason := self.kind.refuses_all(status, text):
            return EngineRefuses(reason)
        message = self.kind.complaint(status, text)
        if status in (429, 503, 529):
            return EngineBusy(message, seconds(headers.get("Retry-After")))
        if status in (400, 403, 404, 405, 413, 415, 422):
            return RequestRefused(message)
        return EngineError(message)


def seconds(header: str | None) -> float | None:
    """Return a Retry-After in seconds; None if it is absent, or a date, which no vendor sends."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None


@asynccontextmanager
async def engine_client(served: ServedModel, timeout_s: float) -> AsyncIterator[EngineClient]:
    """A client whose connections are kept and shared until the block ends."""
    # No limit: the app's own queue is one. vLLM closes a connection that was idle for 5 s; a query must not be on its
    # way then.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(
        connector=connector,
        headers={"Authorization": f"Bearer {served.key}"},
        timeout=aiohttp.ClientTimeout(timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=isinstance(
            served.kind, HostedEndpoint
        ),  # HTTPS_PROXY, which a vendor is behind in many companies, and no engine of one's own
    ) as session:
        yield EngineClient(session, served)
