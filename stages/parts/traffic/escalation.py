"""Queries to the teacher while the service runs: within a time limit and a daily budget, and never while it is down.

A circuit breaker (Nygard, Release It!, 2007) keeps a failing teacher from costing every unsure query its time limit.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from stages.parts.engines.budget import Budget, BudgetExceeded
from stages.parts.engines.caching_client import CachingClient, ChatClient
from stages.parts.engines.http_client import EngineError
from stages.parts.engines.requests import NO_ANSWER, Outcome
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime
from stages.parts.run.provenance import today
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.labelling import Labeller
from stages.parts.teachers.teacher import Teacher
from stages.parts.traffic.store import TrafficStore

FAILURES_TO_OPEN = 5  # in a row
ATTEMPTS = 2  # of a request: a client waits for its end
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


class DailyTeacher:
    """The profile's teacher with a budget for each day, which begins at 0:00 UTC and outlives a restart."""

    def __init__(
        self,
        teacher: Teacher,
        program: IntentClassifier,
        client: ChatClient,
        runtime: Runtime,
        store: TrafficStore,
        budget_usd: float | None,
    ) -> None:
        if budget_usd and not teacher.price:
            raise UserError(
                f"budget_usd_per_day of serve needs a price, and {teacher.name}'s is not known: set teacher.price in "
                "its profile, or leave the budget empty"
            )
        self.teacher = teacher
        self.client = CachingClient(client, teacher.rate_limit(runtime), attempts=ATTEMPTS)
        self.labeller = Labeller(self.client, teacher.requests(program), teacher.votes)
        self.store = store
        self.budget_usd = budget_usd
        self.day = ""
        self.noted = 0.0  # of today's dollars, in the store

    async def predict(self, text: str) -> Outcome:
        """Return a text's outcome; raises EngineRefuses and BudgetExceeded."""
        if self.day != today():
            self.begin_day()
        try:
            return await self.labeller.outcome({"id": "", "text": text})
        finally:  # answers without a label cost money, too
            self.note_spending()

    def begin_day(self) -> None:
        self.day = today()
        self.client.budget = Budget(self.teacher.price, self.budget_usd)
        self.noted = self.store.spending(self.day)[1]
        if self.teacher.price:
            self.client.budget.spent.dollars = self.noted

    def note_spending(self) -> None:
        """Write down what was spent since the last note, whichever of the queries in flight it was for."""
        new, self.noted = self.dollars - self.noted, max(self.noted, self.dollars)
        if new > 0:
            self.store.add_spending(self.day, new)

    @property
    def dollars(self) -> float:
        """What the teacher has cost today; 0 if its price is not known."""
        return self.client.budget.spent.dollars or 0.0

    def price(self, outcome: Outcome) -> float | None:
        """Return the price of the answer behind an outcome, without those that were retried."""
        found = outcome.prediction
        usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
        return self.client.budget.cost(usage)
