"""One teacher queried with many prompts, by us and by DSPy's optimisers: one store, one rate limit, one budget."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy

from stages.parts.data.rows import Row
from stages.parts.engines.budget import Budget, BudgetExceeded, Spending
from stages.parts.engines.caching_client import LIMITS, CachingClient, ChatClient, in_order
from stages.parts.engines.dspy_bridge import CachedDspyEngine, ClientThread, cached_lm, client_thread
from stages.parts.engines.http_client import EngineError
from stages.parts.engines.requests import NO_ANSWER, Outcome
from stages.parts.run.answer_store import answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime
from stages.parts.run.progress import Progress
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.causes import FailFastClient
from stages.parts.teachers.labelling import Labeller, count_stored, spent
from stages.parts.teachers.teacher import Teacher

REFLECTION_TOKENS = 2000  # of a rewritten prompt


class CountingClient:
    """A client that counts what one prompt's answers cost, stored ones included: what they would cost on other rows."""

    def __init__(self, client: CachingClient) -> None:
        self.client = client
        self.budget = Budget(client.budget.price)

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        completion = await self.client.complete(body)
        self.budget.add(body, completion["usage"], self.budget.cost(completion["usage"]))
        return completion


@dataclass
class TeacherSession:
    """A connected teacher. `progress` belongs to the step that runs now."""

    teacher: Teacher
    thread: ClientThread
    max_in_flight: int
    progress: Progress | None = None

    @property
    def spending(self) -> Spending:
        return self.thread.client.budget.spent

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[None]:
        """Show the progress of about `total` answers under a name."""
        if not self.thread.client.sends:
            yield
            return
        with Progress(name, total, "answer") as self.progress:
            yield

    def count_answer(self) -> None:
        if self.progress:
            self.progress.update(note=spent(self.spending))

    def outcomes(self, program: IntentClassifier, rows: Sequence[Row]) -> tuple[list[Outcome], Spending]:
        """Return a program's outcomes of rows, in order, and what they cost.

        Raises UserError if the teacher refuses to work or gives no answer, or the budget would be exceeded. Other
        failures are outcomes without a label.
        """
        client = CountingClient(self.thread.client)
        labeller = Labeller(client, self.teacher.requests(program), self.teacher.votes)
        found: list[Outcome] = []

        def handle(row: Row, outcome: Outcome) -> None:
            if outcome.failure and outcome.failure.reason == NO_ANSWER:
                raise EngineError(outcome.failure.message)  # a row that counts as wrong would favour another prompt
            found.append(outcome)
            self.count_answer()

        try:
            if not self.thread.client.sends:
                self.thread.run(count_stored(labeller, rows))  # all, before the first that is missing ends it
            self.thread.run(in_order(labeller.outcome, rows, self.max_in_flight, handle))
        except ExceptionGroup as group:
            raise reason_to_stop(group.exceptions[0]) from None
        return found, client.budget.spent

    @contextmanager
    def for_optimiser(self, program: IntentClassifier) -> Iterator[tuple[dspy.LM, dspy.LM]]:
        """Yield language models for DSPy: one that labels with `program`'s request options, one that writes prompts.

        Raises UserError like `outcomes`.
        """
        labelling = self.teacher.requests(program).options
        free = {name: value for name, value in labelling.items() if name not in ("logprobs", "top_logprobs")}
        longer = {name: REFLECTION_TOKENS for name in LIMITS if name in free}
        writing = {**free, **longer, **({"temperature": 1.0} if "temperature" in free else {})}
        engines = [CachedDspyEngine(self.thread, options, self.count_answer) for options in (labelling, writing)]
        try:
            first, second = (cached_lm(engine) for engine in engines)
            yield first, second
        finally:  # an optimiser may take the failure for wrong answers, or raise an error of its own
            for engine in engines:
                if engine.failed:
                    raise reason_to_stop(engine.failed) from None


def reason_to_stop(error: Exception) -> Exception:
    """Return a UserError for an error that ends the tuning, if a user can mend it; else the error itself."""
    if isinstance(error, BudgetExceeded):
        return UserError(
            f"{error} are spent and the next request could pass it: raise it and run `make tune-teacher` again, "
            f"the answers so far are kept"
        )
    if isinstance(error, EngineError):
        return UserError(f"{error}; the answers so far are kept")
    return error


@contextmanager
def open_session(teacher: Teacher, runtime: Runtime) -> Iterator[TeacherSession]:
    """Yield a session; raises UserError if another run is querying the same teacher."""
    assert teacher.store
    budget, limit = teacher.budget(runtime), teacher.rate_limit(runtime)
    with answer_store(teacher.store, teacher.busy) as store:

        def caching_client(client: ChatClient) -> CachingClient:
            return CachingClient(FailFastClient(client), limit, store, budget)

        with client_thread(teacher.connect, caching_client) as thread:
            yield TeacherSession(teacher, thread, teacher.max_in_flight(runtime))
