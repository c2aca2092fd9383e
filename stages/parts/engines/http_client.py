"""One request to an engine: a pool of connections, a time limit, and an error for each failure (errors.py)."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import orjson
from yarl import URL

from stages.parts.engines.endpoint import HostedEndpoint, in_one_line, message_in
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.errors import (
    EngineBusy,
    EngineError,
    EngineRefuses,
    EngineTimeout,
    QueryRefused,
    RequestRefused,
    UnreadableAnswer,
)

JSON = {"Content-Type": "application/json"}
Of = TypeVar("Of", str, list[Any], dict[str, Any])
MAX_BYTES = 32 * 2**20  # of a body: a hundred times the log-probabilities of a long answer


class EngineClient:
    """Requests to an engine, on a session that brings its key."""

    def __init__(self, session: aiohttp.ClientSession, served: ServedModel) -> None:
        self.session = session
        self.api_base, self.key = served.api_base, served.key
        self.url = URL(f"{served.api_base}/chat/completions")  # once, not a query
        self.kind = served.kind

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response to a chat completion request; raises EngineError, whose message never repeats the query
        unless the engine does.
        """
        try:
            async with self.session.post(
                self.url, data=orjson.dumps(body), headers=JSON, allow_redirects=False
            ) as response:
                content = await read_limited(response)
        except TimeoutError:
            raise EngineTimeout("the engine did not answer in time") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineError(f"the engine failed: {in_one_line(f'{type(error).__name__}: {error}')}") from None
        if not 200 <= response.status < 300:
            raise self.failure(response.status, response.headers, content.decode(errors="replace"), self.url)
        try:
            answer = json_object(content)
        except ValueError:
            raise EngineError(
                f"the answer is no JSON; it begins with {in_one_line(content[:60].decode(errors='replace'))!r}"
            ) from None
        if answer.get("choices") is not None:
            return answer
        if failed := answer.get("error"):  # gateways answer 200 with it when the model behind them fails
            code = failed.get("code") if isinstance(failed, dict) else None
            if isinstance(code, int) and 400 <= code < 500:
                raise self.failure(code, response.headers, content.decode(errors="replace"))
            raise EngineError(f"the answer is no chat completion: {message_in(content.decode(errors='replace'))}")
        raise UnreadableAnswer("the engine's answer is no chat completion: it has no choices", answer)

    async def models(self) -> list[str]:
        """The names that the engine serves; raises EngineError."""
        try:
            async with self.session.get(f"{self.api_base}/models") as response:
                if response.status != 200:
                    text = (await read_limited(response)).decode(errors="replace")
                    raise self.failure(response.status, response.headers, text)
                return self.kind.models((await response.json())["data"])
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the engine failed: {type(error).__name__}") from None

    def failure(self, status: int, headers: Mapping[str, str], text: str, url: URL | str = "") -> EngineError:
        """Return what an error status means. A 404 names `url`, where given: its path may be the fault."""
        if 300 <= status < 400:  # a redirect would turn the request into a GET
            return EngineRefuses(f"{url or self.url} redirects to {headers.get('Location')}: name that address instead")
        if status in (400, 413, 422) and self.kind.says_too_long(text):
            return QueryRefused("the query has too many tokens for the model")
        if reason := self.kind.refuses_all(status, text):
            return EngineRefuses(f"{reason} (at {url})" if status == 404 and url else reason)
        message = self.kind.complaint(status, text)
        if status in (429, 503, 529):
            return EngineBusy(message, seconds(headers.get("Retry-After")))
        if status in (400, 403, 404, 405, 413, 415, 422):
            return RequestRefused(message)
        return EngineError(message)


async def read_limited(response: aiohttp.ClientResponse) -> bytes:
    """Return a body of at most MAX_BYTES; raises EngineError for a larger one."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise EngineError(f"the answer is larger than {MAX_BYTES // 2**20} MiB")
    return b"".join(chunks)


def json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in a body: itself, alone in a list, or in server-sent events; raises ValueError."""
    try:
        found = orjson.loads(content)  # a third of the json module's time for 20 log-probabilities
    except ValueError:
        text = content.decode("utf-8-sig", errors="replace").strip()  # -sig: gateways on .NET send a byte order mark
        if text.startswith(("data:", "event:", "id:", ":")):
            return from_events(text)
        try:
            found = json.loads(text)  # takes NaN, Infinity and integers of any size
        except RecursionError:
            raise ValueError("nested too deeply") from None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def from_events(text: str) -> dict[str, Any]:
    """Return the completion that a stream of events makes up, for endpoints that stream although nobody wanted it.

    Raises ValueError for what is no JSON, UnreadableAnswer for events of another form: a part left out could make
    another label.
    """
    content: list[str] = []
    tokens: list[Any] = []
    found: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data in ("", "[DONE]"):
            continue
        event = json_object(data.encode())
        found |= {name: value for name, value in event.items() if value is not None}
        for choice_part in typed(event.get("choices"), list, found):
            part = typed(choice_part, dict, found)
            if part.get("index"):
                continue  # further choices
            message = typed(part.get("delta") or part.get("message"), dict, found)
            content.append(typed(message.get("content"), str, found))
            logprobs = part.get("logprobs")
            listed = logprobs.get("content") if isinstance(logprobs, dict) else None
            tokens += listed if isinstance(listed, list) else []
            choice |= {name: value for name, value in part.items() if value is not None}
    if choice:
        message = {"role": "assistant", "content": "".join(content)}
        logprobs = {"content": tokens} if tokens else choice.get("logprobs")
        found["choices"] = [{**choice, "message": message, "logprobs": logprobs}]
    return found


def typed(value: Any, kind: type[Of], answer: dict[str, Any]) -> Of:
    """Return a value of that type, the empty one for None; raises UnreadableAnswer, with the `answer`, for another."""
    if value is not None and not isinstance(value, kind):
        raise UnreadableAnswer("the engine's answer is no chat completion, but events of another form", answer)
    return kind() if value is None else value


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
