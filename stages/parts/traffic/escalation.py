"""Queries to the teacher while the service runs: within a time limit and a daily budget, and never while it is down.

A circuit breaker (Nygard, Release It!, 2007) keeps a failing teacher from costing every unsure query its time limit.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.http_client import EngineError
from stages.parts.engines.requests import NO_ANSWER, Outcome

FAILURES_TO_OPEN = 5  # in a row
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

Reason = Literal["slow", "down", "budget", "refused"]


class TeacherUnavailable(Exception):
    """The teacher gave no label for a query. `reason`: too slow, down, out of budget, or it refuses this query."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the teacher gave no label: {reason}")
        self.reason: Reason = reason


class Circuit:
    """Decides whether the teacher may be queried.

    Closed: always. FAILURES_TO_OPEN failures in a row open it: never, for a pause. After the pause it is half open: one
    trial may pass. Its success closes the circuit; its failure opens it for twice as long, up to LONGEST_PAUSE_S.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.succeed()

    def succeed(self) -> None:
        self.failures = 0
        self.pause_s = FIRST_PAUSE_S
        self.closed_again_at: float | None = None  # None: closed
        self.on_trial = False

    def fail(self) -> None:
        self.failures += 1
        if self.on_trial:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        if self.on_trial or (self.closed_again_at is None and self.failures >= FAILURES_TO_OPEN):
            self.closed_again_at = self.clock() + self.pause_s
            self.on_trial = False

    def abandon(self) -> None:
        """Give a trial back that ended without saying anything of the teacher, as when the client went away."""
        self.on_trial = False

    def allows(self) -> bool:
        """Whether a query may be sent now. If the circuit is half open, the caller's query is the trial."""
        if self.closed_again_at is None:
            return True
        if self.on_trial or self.clock() < self.closed_again_at:
            return False
        self.on_trial = True
        return True

    @property
    def is_open(self) -> bool:
        return self.closed_again_at is not None


@dataclass(frozen=True)
class TeacherAnswer:
    """The teacher's label for a query, its probability in [0, 1] if the teacher reports one, and its price if known."""

    label: str
    confidence: float | None
    dollars: float | None


class Escalation:
    """Queries the teacher through `predict`, which returns a text's outcome; `price` returns the dollars of one."""

    def __init__(
        self,
        predict: Callable[[str], Awaitable[Outcome]],
        price: Callable[[Outcome], float | None],
        timeout_s: float,
        circuit: Circuit | None = None,
    ) -> None:
        self.predict = predict
        self.price = price
        self.timeout_s = timeout_s
        self.circuit = circuit or Circuit()

    async def query(self, text: str) -> TeacherAnswer:
        """Return the teacher's answer; raises TeacherUnavailable."""
        if not self.circuit.allows():
            raise TeacherUnavailable("down")
        try:
            async with asyncio.timeout(self.timeout_s):
                outcome = await self.predict(text)
        except TimeoutError:
            self.circuit.fail()
            raise TeacherUnavailable("slow") from None
        except BudgetExceeded:  # says nothing of the teacher
            self.circuit.abandon()
            raise TeacherUnavailable("budget") from None
        except EngineError:
            self.circuit.fail()
            raise TeacherUnavailable("down") from None
        except BaseException:
            self.circuit.abandon()
            raise
        if outcome.failure and outcome.failure.reason == NO_ANSWER:
            self.circuit.fail()
            raise TeacherUnavailable("down")
        self.circuit.succeed()
        if outcome.failure:
            raise TeacherUnavailable("refused")
        label = outcome.prediction.label
        return TeacherAnswer(label, outcome.prediction.probabilities.get(label), self.price(outcome))
