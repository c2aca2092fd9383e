"""Answers that are known already: the same queries come again and again in support traffic."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from serve.schemas import Classification

AnswerSource = Literal["engine", "in_flight", "cache"]


@dataclass
class Asked:
    """A query on its way to the engine, and how many wait for its answer."""

    task: asyncio.Task[Classification]
    waiting: int = 0


class AnswerCache:
    """The last `size` answers, and those on their way: queries of the same text share them. With size 0 each query is
    asked for itself.

    `pair` names weights, program and calibration. Kept are hashes of the texts, never the texts; failures are shared,
    not kept.
    """

    def __init__(self, pair: str, size: int) -> None:
        self.pair = pair
        self.size = size
        self.kept: OrderedDict[bytes, Classification] = OrderedDict()
        self.asked: dict[bytes, Asked] = {}

    async def answer(
        self, query: str, ask: Callable[[str], Awaitable[Classification]]
    ) -> tuple[Classification, AnswerSource]:
        """The query's answer, by `ask` where there is none yet, and where it came from. Raises what `ask` raises."""
        if not self.size:
            return await ask(query), "engine"
        key = hashlib.blake2b(f"{self.pair}\n{query}".encode(errors="surrogatepass"), digest_size=16).digest()
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key], "cache"
        source: AnswerSource = "in_flight" if key in self.asked else "engine"
        if source == "engine":
            self.asked[key] = Asked(asyncio.ensure_future(ask(query)))
        return await self.wait(key, self.asked[key]), source

    async def wait(self, key: bytes, asked: Asked) -> Classification:
        """One waiter's turn. The first to see the answer keeps it; the last to give up cancels the question."""
        asked.waiting += 1
        try:
            answer = await asyncio.shield(asked.task)
        finally:
            asked.waiting -= 1
            if (asked.task.done() or not asked.waiting) and self.asked.get(key) is asked:
                del self.asked[key]  # who asks from here on finds it kept, or asks anew
                asked.task.cancel()
        self.kept[key] = answer
        if len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return answer
