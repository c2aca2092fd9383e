"""A teacher that is asked with one prompt after another: one log, one pace, one budget for all of them, and for DSPy's
optimisers.
"""

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
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.engines.requests import NO_ANSWER, Outcome, ProgramRequests
from stages.parts.run.append_log import append_log
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime
from stages.parts.run.progress import Progress
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import TeacherFormat
from stages.parts.teachers.labelling import BUSY, Labeller, cost
from stages.parts.teachers.teacher import Teacher

REFLECTION_TOKENS = 2000  # of a rewritten prompt


class CallCount:
    """A client that counts what one prompt's answers cost, kept ones included: what they would cost on other rows."""

    def __init__(self, client: CachingClient) -> None:
        self.client = client
        self.budget = Budget(client.budget.price)

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        completion = await self.client.complete(body)
        self.budget.add(body, completion["usage"], self.budget.cost(completion["usage"]))
        return completion


@dataclass
class Session:
    """`progress` is that of the step that runs now."""

    teacher: Teacher
    thread: ClientThread
    threads: int
    progress: Progress | None = None

    @property
    def spent(self) -> Spending:
        return self.thread.client.budget.spent

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[None]:
        """Tells of `total` answers or so under a name."""
        with Progress(name, total, "answer") as self.progress:
            yield

    def answered(self) -> None:
        if self.progress:
            self.progress.update(note=cost(self.spent))

    def answers(self, program: IntentClassifier, rows: Sequence[Row]) -> tuple[list[Outcome], Spending]:
        """A program's answers to rows, in order, and what they cost; a row that fails is an answer without a label.

        Raises UserError where the teacher refuses to work or does not answer, or the budget would be passed.
        """
        tally = CallCount(self.thread.client)
        labeller = Labeller(tally, self.requests(program), self.teacher.votes)
        found: list[Outcome] = []

        def take(row: Row, answer: Outcome) -> None:
            if answer.failure and answer.failure.reason == NO_ANSWER:
                raise EngineError(answer.failure.message)
            found.append(answer)
            self.answered()

        try:
            self.thread.run(in_order(labeller.answer, rows, self.threads, take))
        except ExceptionGroup as group:
            raise told(group.exceptions[0]) from None
        return found, tally.budget.spent

    def requests(self, program: IntentClassifier) -> ProgramRequests:
        return ProgramRequests(
            program,
            self.teacher.kind,
            self.teacher.name,
            self.teacher.max_tokens,
            TeacherFormat(),
            self.teacher.options,
        )

    @contextmanager
    def for_optimiser(self, program: IntentClassifier) -> Iterator[tuple[dspy.LM, dspy.LM]]:
        """Language models for DSPy: one that is asked as labelling asks, one that writes prompts. Raises UserError as
        `answers` does.
        """
        labelling = self.requests(program).options
        free = {name: value for name, value in labelling.items() if name not in ("logprobs", "top_logprobs")}
        longer = {name: REFLECTION_TOKENS for name in LIMITS if name in free}
        writing = {**free, **longer, **({"temperature": 1.0} if "temperature" in free else {})}
        engines = [CachedDspyEngine(self.thread, options, self.answered) for options in (labelling, writing)]
        try:
            first, second = (cached_lm(engine) for engine in engines)
            yield first, second
        finally:  # an optimiser may take the failure for wrong answers, or raise something of its own for it
            for engine in engines:
                if engine.failed:
                    raise told(engine.failed) from None


def told(error: Exception) -> Exception:
    """What ends the tuning, for the user where it is the user's to mend."""
    if isinstance(error, BudgetExceeded):
        return UserError(
            f"{error} are spent and the next request could pass it: raise it and run `make tune-teacher` again, "
            f"the answers so far are kept"
        )
    if isinstance(error, EngineError):
        return UserError(f"{error}; the answers so far are kept")
    return error


@contextmanager
def session(teacher: Teacher, runtime: Runtime) -> Iterator[Session]:
    """A session until the block ends; raises UserError where another run is asking the same teacher."""
    assert teacher.log
    budget = teacher.budget(runtime)
    rate_limit = RateLimit(runtime.max_in_flight, runtime.requests_per_minute, runtime.tokens_per_minute)
    with append_log(teacher.log, BUSY.format(teacher.name)) as log:

        def caching_client(client: ChatClient) -> CachingClient:
            return CachingClient(client, rate_limit, log, budget)

        with client_thread(teacher.connect, caching_client) as thread:
            yield Session(teacher, thread, runtime.max_in_flight)
