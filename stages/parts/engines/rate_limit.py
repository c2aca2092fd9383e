"""How fast an engine is queried: as many requests in flight as it bears, and no more a minute than it allows.

Requests in flight grow and shrink as TCP's windows do (additive increase, multiplicative decrease; Chiu and Jain 1989):
from a few, by one for each answer, until the engine answers that it is overloaded; then half as many, and one more for
each round of answers.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FIRST = 8  # requests before the first answer: a wrong key or model costs no more
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


def backoff_s(attempt: int) -> float:
    """Seconds before attempt `attempt` + 1: doubling, between half and all of it at random, so that not all come back
    at once.
    """
    return min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)


class RateLimit:
    """Slots for requests in flight, `max_in_flight` at most, and starts spread over the minute."""

    def __init__(
        self, max_in_flight: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self.max_in_flight = max_in_flight
        self.request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self.token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.limit = float(min(FIRST, max_in_flight))
        self.growing_fast = True
        self.in_flight = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.next_start = 0.0
        self.held_until = 0.0
        self.last_cut = 0.0

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[float]:
        """Hold a slot for a request of about `tokens` tokens; yields its start time. First come, first served."""
        if self.waiting or self.in_flight >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.release()
                raise
        else:
            self.in_flight += 1
        try:
            now = time.monotonic()
            start = max(now, self.next_start)
            if self.request_s or self.token_s:
                self.next_start = start + max(self.request_s, tokens * self.token_s)
            while (wait := max(start, self.held_until) - time.monotonic()) > 0:
                await asyncio.sleep(wait * random.uniform(1.0, 1.1) if self.held_until > start else wait)
            yield time.monotonic()
        finally:
            self.release()

    def release(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self.fill_slots()

    def fill_slots(self) -> None:
        """Hand free slots to those who wait longest: whoever comes now is behind them."""
        while self.waiting and self.in_flight < int(self.limit):
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self.in_flight += 1

    def correct(self, expected: int, tokens: int) -> None:
        """Move later starts by the tokens that a request took beyond, or below, those its slot was reserved for."""
        self.next_start += (tokens - expected) * self.token_s

    def grow(self) -> None:
        """Allow more in flight, after an answer."""
        self.limit = min(self.max_in_flight, self.limit + (1.0 if self.growing_fast else 1 / self.limit))
        self.fill_slots()

    def shrink(self, started: float, retry_after_s: float | None) -> None:
        """Allow half as many in flight, after the engine called a request that started then too much, and wait for as
        long as it wants."""
        if retry_after_s is not None:
            self.held_until = max(self.held_until, time.monotonic() + retry_after_s)
        if started > self.last_cut:  # answers to requests from before the last cut say nothing new
            self.limit = max(1.0, self.limit / 2)
            self.growing_fast = False
            self.last_cut = time.monotonic()
