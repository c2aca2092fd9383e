"""Asking a teacher for the labels of many texts."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import uvloop

from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.engines.batch_api import Batches
from stages.parts.engines.budget import BudgetExceeded, Spending
from stages.parts.engines.caching_client import CachingClient, ChatClient, in_order
from stages.parts.engines.http_client import EngineClient, EngineError, EngineRefuses
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.engines.requests import Outcome, Prediction, ProgramRequests
from stages.parts.run.append_log import AppendLog, append_log
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime
from stages.parts.run.progress import Progress
from stages.parts.task.labels import UNKNOWN
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import TeacherFormat
from stages.parts.teachers.rows import RowSource
from stages.parts.teachers.teacher import Teacher

MAX_FAILED = 0.02  # share of the rows, and one in any case; more means that the teacher is ill, not the queries
BUSY = "another run is asking {}: wait for it, its answers are shared"
VOTE_TEMPERATURE = 0.7  # of the paper's
MORE_ASKS = 2  # after an answer without a label: of 2 % that come by chance one leaves 2 rows of 5,000, two none


class Labeller:
    """Asks for one row at a time, and where an answer has no label again with what was wrong. With `votes` above 1 each
    row is asked so often, at a temperature, and the answers vote (self-consistency, Wang et al. 2022, arXiv
    2203.11171)."""

    def __init__(self, client: ChatClient, requests: ProgramRequests, votes: int = 1) -> None:
        self.client = client
        self.requests = requests
        self.votes = votes

    async def answer(self, row: Row) -> Outcome:
        """Return a row's outcome; raises what concerns every row (EngineRefuses, BudgetExceeded)."""
        return elected(await asyncio.gather(*map(self.one, bodies_of(row["text"], self.requests, self.votes))))

    async def one(self, body: dict[str, Any]) -> Outcome:
        try:
            completion = await self.client.complete(body)
            prediction = self.requests.read(completion)
            for _ in range(MORE_ASKS):
                if not prediction.wrong:
                    break
                body = self.requests.body_again(body, completion, prediction.wrong)
                completion = await self.client.complete(body)
                prediction = self.requests.read(completion)
        except EngineError as error:
            return Outcome.of(error)
        return Outcome.of(prediction)


def bodies_of(text: str, requests: ProgramRequests, votes: int) -> list[dict[str, Any]]:
    """The requests for a text; votes differ by their seed, so that each is an answer of its own, kept as such."""
    body = requests.body(text)
    return (
        [body] if votes == 1 else [{**body, "temperature": VOTE_TEMPERATURE, "seed": number} for number in range(votes)]
    )


def elected(answers: Sequence[Outcome]) -> Outcome:
    """What most answers say; probabilities are the mean of theirs, where those that report none give all to their
    label.
    """
    valid = [answer.prediction for answer in answers if not answer.failure]
    if len(answers) == 1 or not valid:
        return answers[0]
    shares: dict[str, float] = defaultdict(float)
    for prediction in valid:
        for label, share in (prediction.probabilities or {prediction.label: 1.0}).items():
            shares[label] += share / len(valid)
    votes = Counter(prediction.label for prediction in valid)
    label = max(votes, key=lambda name: (votes[name], shares[name]))
    first = next(prediction for prediction in valid if prediction.label == label)
    return Outcome(replace(first, probabilities=dict(sorted(shares.items(), key=lambda pair: -pair[1]))))


def teacher_label(row: Row, prediction: Prediction) -> TeacherLabel:
    """The record of a row. Probabilities have four digits: the rest is rounding, and would make equal labels unequal
    files.
    """
    confidence = prediction.probabilities.get(prediction.label)
    return TeacherLabel(
        id=row["id"],
        text=row["text"],
        label=prediction.label,
        reasoning=prediction.reasoning or "",
        valid=prediction.label != UNKNOWN,
        confidence=None if confidence is None else round(confidence, 4),
        probabilities={label: round(share, 4) for label, share in sorted(prediction.probabilities.items())},
    )


def label_all(
    teacher: Teacher,
    program: IntentClassifier,
    rows: RowSource,
    runtime: Runtime,
    take: Callable[[Row, Outcome], None],
) -> Spending:
    """Give each row and its answer to `take`, in order; say what they cost.

    Raises UserError where the teacher refuses to work, the budget would be passed, or more than MAX_FAILED of the rows
    fail. Nothing that was answered is lost by that.
    """
    budget = teacher.budget(runtime)
    requests = ProgramRequests(
        program, teacher.kind, teacher.name, teacher.max_tokens, TeacherFormat(), teacher.options
    )
    busy = BUSY.format(teacher.name)
    failures: Counter[str] = Counter()
    done, count = 0, len(rows)

    async def run(log: AppendLog | None, progress: Progress) -> None:
        async def answer(row: Row) -> Outcome:
            nonlocal done
            found = await labeller.answer(row)
            done += 1
            if found.failure:
                failures[found.failure.reason] += 1
                if failures.total() > max(1, MAX_FAILED * count):
                    raise TooManyFailures
            progress.update(note=note(budget.spent, failures.total() / done))
            return found

        async with teacher.connect() as client:
            rate_limit = RateLimit(runtime.max_in_flight, runtime.requests_per_minute, runtime.tokens_per_minute)
            caching = CachingClient(client, rate_limit, log, budget)
            labeller = Labeller(caching, requests, teacher.votes)
            if teacher.batch:
                assert teacher.log and isinstance(client, EngineClient)
                bodies = (body for row in rows for body in bodies_of(row["text"], requests, teacher.votes))
                with append_log(teacher.log.with_suffix(".batches.jsonl"), busy) as jobs:
                    await Batches(client, caching, jobs).complete_all(bodies)
            await in_order(answer, rows, runtime.max_in_flight, take)

    kept = append_log(teacher.log, busy) if teacher.log else nullcontext()
    try:
        with (
            kept as log,
            Progress(f"asking {teacher.name}", count) as progress,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
        ):
            loop.run(run(log, progress))
    except (ExceptionGroup, EngineError, BudgetExceeded) as raised:  # a batch is no group of tasks
        error = raised.exceptions[0] if isinstance(raised, ExceptionGroup) else raised
        if isinstance(error, EngineRefuses):
            raise UserError(f"{error}; {done} of {count} rows are labelled, their answers are kept") from None
        if isinstance(error, BudgetExceeded):
            raise UserError(
                f"{error} are spent and the next request could pass it: {done} of {count} rows are labelled; raise "
                f"it and run `dvc repro` "
                "again, the answers so far are kept"
            ) from None
        if isinstance(error, TooManyFailures):
            reasons = ", ".join(f"{reason}: {number}" for reason, number in failures.most_common())
            raise UserError(
                f"more than {MAX_FAILED:.0%} of {count} rows got no label ({reasons}, of {done} asked): check the "
                f"teacher and run "
                "`dvc repro` again; the answers so far are kept"
            ) from None
        if isinstance(error, EngineError):
            raise UserError(
                f"{error}; {done} of {count} rows are labelled: run `dvc repro` again, the answers so far are kept"
            ) from None
        raise error from None
    return budget.spent


class TooManyFailures(Exception):
    """The run can't end well any more."""


def note(spent: Spending, failed: float) -> str:
    """What a progress line says beside the count."""
    return f"{cost(spent)}, {failed:.1%} invalid"


def cost(spent: Spending) -> str:
    return f"{spent.tokens:,} tokens" if spent.dollars is None else f"${spent.dollars:.2f}"
