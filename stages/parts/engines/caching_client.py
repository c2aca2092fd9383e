"""A client for many requests: each answer is stored the moment it arrives, failures are retried, the engine is never
overrun.

A request's key is its content: the model, the messages and the sampling, not how long the answer may be. A stored
answer is requested again only if it was cut short and more tokens are allowed now.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from stages.parts.engines.budget import Budget
from stages.parts.engines.completions import compact, usage_of, with_estimates
from stages.parts.engines.http_client import (
    EngineBusy,
    EngineError,
    EngineRefuses,
    QueryRefused,
    RequestRefused,
    UnreadableAnswer,
)
from stages.parts.engines.rate_limit import RateLimit, backoff_s
from stages.parts.run.answer_store import KEY_LENGTH, AnswerStore

ATTEMPTS = 8  # with the pauses between them, about half a minute and the engine's own Retry-After
LONGEST_RETRY_AFTER_S = 600
UNREADABLE_ATTEMPTS = 3  # each is paid
AHEAD = 64  # times as many rows as are in flight may be answered before one that waits
LIMITS = ("max_tokens", "max_completion_tokens")  # what says how long an answer may be

Item = TypeVar("Item")
Processed = TypeVar("Processed")


class ChatClient(Protocol):
    """What completes chat requests: an `EngineClient`, or a teacher in this process."""

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response, as OpenAI's protocol has it; raises EngineError."""
        ...


def content_key(body: Mapping[str, Any]) -> str:
    """Return the key of a request's answer in the store: 32 hex digits."""
    content = {name: value for name, value in body.items() if name not in LIMITS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def allowed_tokens(body: Mapping[str, Any]) -> int:
    return max(body.get(name) or 0 for name in LIMITS)


def was_cut(completion: Mapping[str, Any]) -> bool:
    return bool(completion["choices"][0]["finish_reason"] == "length")


def completion_in(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the compact completion of a record; None for an answer that could not be read, and still can't be."""
    if "raw" not in record:
        return dict(record["completion"])
    try:
        return compact(record["raw"])
    except UnreadableAnswer:
        return None


def still_answers(record: Mapping[str, Any] | None, body: Mapping[str, Any]) -> bool:
    """Return whether a stored record answers a request: not if it was cut short and more tokens are allowed now."""
    completion = completion_in(record) if record else None
    if not record or not completion:
        return False
    return not (was_cut(completion) and record["max_tokens"] < allowed_tokens(body))


def payments(record: Mapping[str, Any], body: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what a request's answers took, that of a record and those it replaced.

    Each has its usage, dollars (None if no price was known), and whether a batch brought it.
    """
    usage = with_estimates(usage_of(record["completion"]), body, record["completion"])
    own = {"usage": usage, "dollars": record["dollars"], "batch": record.get("batch", False)}
    return [*record.get("paid_before", ()), own]


class CachingClient:
    """Completes requests on one engine. With a `store`, answers in it are not requested again. Adds each stored or new
    answer to its budget once.
    """

    def __init__(
        self,
        client: ChatClient,
        rate_limit: RateLimit,
        store: AnswerStore | None = None,
        budget: Budget | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.client = client
        self.rate_limit = rate_limit
        self.store = store
        self.budget = budget or Budget()
        self.attempts = attempts
        self.pending: dict[str, asyncio.Event] = {}
        self.sends = True

    @contextmanager
    def stored_only(self) -> Iterator[None]:
        """Complete only what is in the store until the block ends; the rest raises EngineError, and nothing is sent."""
        self.sends = False
        try:
            yield
        finally:
            self.sends = True

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a compact chat completion, stored or new.

        Raises EngineRefuses for what no request can mend, RequestRefused and QueryRefused for what a retry
        would not mend, any other EngineError after the last attempt, and BudgetExceeded.
        """
        if self.store is None:
            return (await self.send(body))["completion"]
        key = content_key(body)
        while key in self.pending:  # equal requests are sent once
            await self.pending[key].wait()
        if (stored := self.stored(key, body)) is not None:
            return stored
        if not self.sends:
            raise EngineError("not stored")
        self.pending[key] = asyncio.Event()
        try:
            record = await self.send(body)
        finally:
            self.pending.pop(key).set()
        completion: dict[str, Any] = record["completion"]
        return completion

    def record(self, body: Mapping[str, Any], completion: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Add a new answer to the budget, store it with the payments for those it replaces, and return its record."""
        completion["usage"] = with_estimates(completion["usage"], body, completion)
        record = {
            "max_tokens": allowed_tokens(body),
            "completion": completion,
            "dollars": self.budget.cost(completion["usage"]),
            "at": int(time.time()),
            **more,
        }
        self.budget.add(body, completion["usage"], record["dollars"])
        if self.store is not None:
            key = content_key(body)
            record = self.put(key, record, body)
            if self.store.first_use(key):
                self.count(body, record["paid_before"])
        return record

    def put(self, key: str, record: dict[str, Any], body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Store an answer's record with the payments for those it replaces; returns what is stored."""
        assert self.store is not None
        before = self.store.get(key)
        with_payments = {**record, "paid_before": payments(before, body) if before else []}
        self.store.put(key, with_payments)
        return with_payments

    def stored(self, key: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the store's answer, or None; it is counted the first time it is used."""
        assert self.store is not None
        record = self.store.get(key)
        if record is None or not still_answers(record, body):
            return None
        if self.store.first_use(key):
            self.count(body, payments(record, body))
        completion = completion_in(record)
        assert completion is not None
        completion["usage"] = with_estimates(usage_of(completion), body, completion)
        return completion

    def count(self, body: Mapping[str, Any], paid: Iterable[Mapping[str, Any]]) -> None:
        """Add a request's payments to the budget, at the present price if none was known when they were made."""
        for each in paid:
            dollars = each["dollars"]
            self.budget.add(
                body, each["usage"], self.budget.cost(each["usage"], each["batch"]) if dollars is None else dollars
            )

    async def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered; returns the answer's record: the completion, and what it took."""
        unreadable = 0
        for attempt in range(self.attempts):
            try:
                async with (
                    self.rate_limit.slot(sum(self.budget.expected(body))) as started,
                    self.budget.reservation(body) as expected,
                ):
                    completion = compact(await self.client.complete(body))
                    took = {"attempts": attempt + 1, "seconds": round(time.monotonic() - started, 3)}
                    record = self.record(body, completion, **took)
                    usage = completion["usage"]
                    self.rate_limit.correct(sum(expected), usage["prompt_tokens"] + usage["completion_tokens"])
            except UnreadableAnswer as error:
                # Stored as it came: a later run may be able to read it, and this one reports what it cost.
                paid = {"choices": [], "usage": usage_of(error.answer)}
                self.record(body, paid, raw=error.answer, attempts=attempt + 1, seconds=0.0)
                unreadable += 1
                if unreadable == UNREADABLE_ATTEMPTS:
                    raise
                last: EngineError = error
            except (QueryRefused, RequestRefused):
                raise
            except EngineBusy as error:
                if (error.retry_after_s or 0) > LONGEST_RETRY_AFTER_S:
                    raise EngineRefuses(f"{error} (the next request may come in {error.retry_after_s:.0f} s)") from None
                self.rate_limit.shrink(started, error.retry_after_s)
                last = error
            except EngineRefuses:
                raise
            except EngineError as error:
                last = error
            else:
                self.rate_limit.grow()
                return record
            if attempt + 1 < self.attempts:
                await asyncio.sleep(backoff_s(attempt))
        raise last


async def in_order(
    process: Callable[[Item], Awaitable[Processed]],
    items: Iterable[Item],
    max_in_flight: int,
    handle: Callable[[Item, Processed], None],
) -> None:
    """Process items concurrently and call `handle` with each item and its result, in the items' order.

    Holds a bounded number of items at a time, so that they may be read from a file of any length. The first exception
    ends it, as a group.
    """
    numbered = enumerate(items)
    done: dict[int, tuple[Item, Processed]] = {}
    handled = 0
    moved = asyncio.Event()

    async def work() -> None:
        nonlocal handled, moved
        for number, item in numbered:
            while number - handled >= max_in_flight * AHEAD:
                await moved.wait()
            done[number] = (item, await process(item))
            if number == handled:
                while handled in done:
                    handle(*done.pop(handled))
                    handled += 1
                moved.set()
                moved = asyncio.Event()

    async with asyncio.TaskGroup() as group:
        for _ in range(2 * max_in_flight):  # twice, since those that wait for a retry have no request in flight
            group.create_task(work())
