"""Asking an engine many things: each answer kept the moment it arrives, failures asked again, the engine never overrun.

What a request is keyed by is its content: the model, the messages and the sampling, not how long the answer may be. A
kept answer is asked for again only where it was cut short and more tokens are allowed now.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from stages.parts.engines.budget import Budget
from stages.parts.engines.http_client import EngineBusy, EngineError, EngineRefuses, QueryRefused, RequestRefused
from stages.parts.engines.rate_limit import RateLimit, backoff_s
from stages.parts.run.append_log import KEY_LENGTH, AppendLog
from stages.parts.task.label_probabilities import tokens_of_label

ATTEMPTS = 8  # with the pauses between them, about half a minute and the engine's own Retry-After
LONGEST_RETRY_AFTER_S = 600
LABEL_TOKENS = 40  # whose alternatives are kept
AHEAD = 64  # times as many rows as are in flight may be answered before one that waits
LIMITS = ("max_tokens", "max_completion_tokens")  # what says how long an answer may be

Item = TypeVar("Item")
Result = TypeVar("Result")


class ChatClient(Protocol):
    """Who answers chat completion requests: an `EngineClient`, or a teacher in this process."""

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The response, as OpenAI's protocol has it; raises EngineError."""
        ...


def content_key(body: Mapping[str, Any]) -> str:
    """What an answer is kept under."""
    content = {name: value for name, value in body.items() if name not in LIMITS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def allowed_tokens(body: Mapping[str, Any]) -> int:
    return max(body.get(name) or 0 for name in LIMITS)


def compact(completion: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion with what readers need: content, reason to finish, usage, and the log-probabilities of the
    label's tokens alone (those of a whole reasoning take 100 KB). Raises EngineError where it is none."""
    try:
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        found = choice.get("logprobs")
        tokens = [
            {"token": token["token"], "logprob": token["logprob"], "top_logprobs": alternatives(token)}
            for token in tokens_of_label((found and found["content"]) or [])[:LABEL_TOKENS]
        ]
        return {
            "choices": [
                {
                    "message": {"content": choice["message"].get("content") or ""},
                    "finish_reason": choice.get("finish_reason"),
                    "logprobs": {"content": tokens} if found else None,
                }
            ],
            "usage": {name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")},
        }
    except (KeyError, IndexError, TypeError, AttributeError):
        raise EngineError("the engine's answer is no chat completion with log-probabilities") from None


def alternatives(token: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"token": other["token"], "logprob": other["logprob"]} for other in token.get("top_logprobs") or ()]


def was_cut(completion: Mapping[str, Any]) -> bool:
    return bool(completion["choices"][0]["finish_reason"] == "length")


def still_answers(record: Mapping[str, Any] | None, body: Mapping[str, Any]) -> bool:
    """Whether what the log has is the answer to a request: not where it was cut short and more tokens are allowed
    now.
    """
    return record is not None and not (was_cut(record["completion"]) and record["max_tokens"] < allowed_tokens(body))


def payments(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a record's answer, and the ones before it that were cut short, took: usage, dollars (None where no price was
    known), and whether a batch brought it."""
    own = {"usage": record["completion"]["usage"], "dollars": record["dollars"], "batch": record.get("batch", False)}
    return [*record.get("paid_before", ()), own]


class CachingClient:
    """Asks one engine. With a `log`, what is in it is not asked again. Counts each kept or new answer once, in its
    meter.
    """

    def __init__(
        self,
        client: ChatClient,
        pace: RateLimit,
        log: AppendLog | None = None,
        meter: Budget | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.client = client
        self.pace = pace
        self.log = log
        self.meter = meter or Budget()
        self.attempts = attempts
        self.asking: dict[str, asyncio.Event] = {}
        self.answered = False

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A compact chat completion, kept or new.

        Raises EngineRefuses for what no request can mend, RequestRefused and QueryRefused for what asking again would
        not mend, any other EngineError after the last attempt, and OverBudget.
        """
        if self.log is None:
            return (await self.ask(body))["completion"]
        key = content_key(body)
        while key in self.asking:  # the same text twice is one request
            await self.asking[key].wait()
        if (kept := self.kept(key, body)) is not None:
            return kept
        self.asking[key] = asyncio.Event()
        try:
            record = self.keep(key, await self.ask(body))
            if self.log.first_use(key):
                self.count(body, record["paid_before"])
        finally:
            self.asking.pop(key).set()
        completion: dict[str, Any] = record["completion"]
        return completion

    def keep(self, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Log an answer, and with it what those took that it replaces because they were cut short; gives what is in the
        log then.
        """
        assert self.log is not None
        before = self.log.get(key)
        with_payments = {**record, "paid_before": payments(before) if before else []}
        self.log.put(key, with_payments)
        return with_payments

    def kept(self, key: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The log's answer, counted the first time it is used."""
        assert self.log is not None
        record = self.log.get(key)
        if record is None or not still_answers(record, body):
            return None
        if self.log.first_use(key):
            self.count(body, payments(record))
        self.answered = True  # such requests were not refused
        completion: dict[str, Any] = record["completion"]
        return completion

    def count(self, body: Mapping[str, Any], paid: Iterable[Mapping[str, Any]]) -> None:
        """Count what the log says of answers to a request, at today's price where none was known when they came."""
        for each in paid:
            dollars = each["dollars"]
            self.meter.count(
                body, each["usage"], self.meter.cost(each["usage"], each["batch"]) if dollars is None else dollars
            )

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the log keeps of an answer: the completion, and what it took."""
        for attempt in range(self.attempts):
            try:
                async with (
                    self.pace.place(sum(self.meter.expected(body))) as started,
                    self.meter.reservation(body) as expected,
                ):
                    completion = compact(await self.client.complete(body))
                    usage = completion["usage"]
                    self.pace.cost(sum(expected), usage["prompt_tokens"] + usage["completion_tokens"])
                    dollars = self.meter.cost(usage)
                    self.meter.count(body, usage, dollars)
            except QueryRefused:
                raise
            except RequestRefused as error:
                if self.answered:
                    raise
                raise EngineRefuses(str(error)) from None  # nothing was ever answered: all requests are refused alike
            except EngineBusy as error:
                if (error.retry_after_s or 0) > LONGEST_RETRY_AFTER_S:
                    raise EngineRefuses(f"{error} (and to ask again in {error.retry_after_s:.0f} s)") from None
                self.pace.refused(started, error.retry_after_s)
                last: EngineError = error
            except EngineRefuses:
                raise
            except EngineError as error:
                last = error
            else:
                self.answered = True
                self.pace.answered()
                return {
                    "max_tokens": allowed_tokens(body),
                    "completion": completion,
                    "dollars": dollars,
                    "attempts": attempt + 1,
                    "seconds": round(time.monotonic() - started, 3),
                    "at": int(time.time()),
                }
            if attempt + 1 < self.attempts:
                await asyncio.sleep(backoff_s(attempt))
        raise last


async def in_order(
    answer: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item],
    at_once: int,
    take: Callable[[Item, Result], None],
) -> None:
    """Give every item and its answer to `take`, in order, whatever order the answers come in. Holds a bounded number of
    items at a time, so that they may be read from a file of any length. The first exception ends it, as a group."""
    numbered = enumerate(items)
    done: dict[int, tuple[Item, Result]] = {}
    taken = 0
    moved = asyncio.Event()

    async def work() -> None:
        nonlocal taken, moved
        for number, item in numbered:
            while number - taken >= at_once * AHEAD:
                await moved.wait()
            done[number] = (item, await answer(item))
            if number == taken:
                while taken in done:
                    take(*done.pop(taken))
                    taken += 1
                moved.set()
                moved = asyncio.Event()

    async with asyncio.TaskGroup() as group:
        for _ in range(2 * at_once):  # twice, since those that wait to ask again ask nothing
            group.create_task(work())
