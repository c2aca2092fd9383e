"""Predictions that are known already: in support traffic the same queries come again and again."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from stages.parts.students.prediction import CalibratedPrediction

PredictionSource = Literal["engine", "in_flight", "cache"]


@dataclass
class Pending:
    """A query on its way to the engine, and how many requests wait for its prediction."""

    task: asyncio.Task[CalibratedPrediction]
    waiting: int = 0


class AnswerCache:
    """The last `size` predictions, and those on their way: queries of the same text share them. With size 0 each query
    goes to the engine by itself.

    `pair` names weights, program and calibration. Texts are kept as hashes only; failures are shared, not kept.
    """

    def __init__(self, pair: str, size: int) -> None:
        self.pair = pair
        self.size = size
        self.kept: OrderedDict[bytes, CalibratedPrediction] = OrderedDict()
        self.pending: dict[bytes, Pending] = {}

    async def get(
        self, text: str, compute: Callable[[], Awaitable[CalibratedPrediction]]
    ) -> tuple[CalibratedPrediction, PredictionSource]:
        """Return the prediction for a text, computed if it is not known, and where it came from. Raises what `compute`
        raises.
        """
        if not self.size:
            return await compute(), "engine"
        key = hashlib.blake2b(f"{self.pair}\n{text}".encode(errors="surrogatepass"), digest_size=16).digest()
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key], "cache"
        source: PredictionSource = "in_flight" if key in self.pending else "engine"
        if source == "engine":
            self.pending[key] = Pending(asyncio.ensure_future(compute()))
        return await self.wait(key, self.pending[key]), source

    async def wait(self, key: bytes, pending: Pending) -> CalibratedPrediction:
        """Wait for a pending prediction. The first to see it keeps it; the last one to give up cancels the query."""
        pending.waiting += 1
        try:
            # shielded: a client that hangs up must not take the prediction from others that wait for it
            prediction = await asyncio.shield(pending.task)
        finally:
            pending.waiting -= 1
            if (pending.task.done() or not pending.waiting) and self.pending.get(key) is pending:
                del self.pending[key]  # a later query finds it kept, or computes anew
                pending.task.cancel()
        self.kept[key] = prediction
        if len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return prediction
