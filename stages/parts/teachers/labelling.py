"""Label many rows with one teacher: votes, retries of unusable answers, and the errors that end a run."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import uvloop

from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.engines.budget import BudgetExceeded, Spending
from stages.parts.engines.caching_client import CachingClient, ChatClient, in_order
from stages.parts.engines.http_client import EngineClient, EngineError, EngineRefuses
from stages.parts.engines.requests import (
    NO_ANSWER,
    NO_PREDICTION,
    Failure,
    Outcome,
    Prediction,
    ProgramRequests,
)
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime
from stages.parts.run.progress import Progress
from stages.parts.task.labels import UNKNOWN
from stages.parts.task.program import IntentClassifier
from stages.parts.task.text import safe_text
from stages.parts.teachers.causes import Causes, FailFastClient
from stages.parts.teachers.inputs import RowSource
from stages.parts.teachers.teacher import Teacher

MAX_FAILED = 0.02  # share of the rows, and one row in any case: more is a fault of the teacher, not of the rows
ALL_FAILED = 10  # rows, the first ones, all without a label: the others will have none either
VOTE_TEMPERATURE = 0.7  # as in Wang et al.
RETRIES = 2  # of an answer without a label: at 2 % random failures one retry leaves 2 of 5,000 rows, two leave none


class Labeller:
    """Labels one row at a time. An answer without a label is retried with what was wrong with it.

    With `votes` above 1 each row gets so many answers, sampled at a temperature, and the majority's label
    (self-consistency, Wang et al. 2022, arXiv 2203.11171).
    """

    def __init__(self, client: ChatClient, requests: ProgramRequests, votes: int = 1) -> None:
        self.client = client
        self.requests = requests
        self.votes = votes

    async def outcome(self, row: Row) -> Outcome:
        """Return a row's outcome; raises what concerns all rows (EngineRefuses, BudgetExceeded)."""
        bodies = request_bodies(row["text"], self.requests, self.votes)
        if not bodies:
            return Outcome(NO_PREDICTION, Failure("nothing to read", "the text holds nothing that a model reads"))
        return majority(await asyncio.gather(*map(self.vote, bodies)))

    async def vote(self, body: dict[str, Any]) -> Outcome:
        try:
            completion = await self.client.complete(body)
            prediction = self.requests.read(completion)
            for _ in range(RETRIES):
                if not prediction.wrong:
                    break
                body = self.requests.body_again(body, completion, prediction.wrong)
                completion = await self.client.complete(body)
                prediction = self.requests.read(completion)
        except EngineError as error:
            return Outcome.of(error)
        return Outcome.of(prediction)


def request_bodies(text: str, requests: ProgramRequests, votes: int) -> list[dict[str, Any]]:
    """Return the requests for a text; none if there is nothing to read in it, such as invisible characters alone.

    Votes differ by their seed, so that each answer is kept under its own key.
    A temperature in the teacher's options counts, also an empty one, with which the model's own is used.
    """
    if not safe_text(text, requests.program.labels):
        return []
    body = requests.body(text)
    if votes == 1:
        return [body]
    sampled = body if "temperature" in requests.own_options else {**body, "temperature": VOTE_TEMPERATURE}
    return [{**sampled, "seed": number} for number in range(votes)]


def majority(votes: Sequence[Outcome]) -> Outcome:
    """Return the most frequent label's outcome; a tie goes to the more probable label.

    Probabilities are the mean over the votes; a vote without any gives 1 to its label. Failed votes do not count,
    unless all have failed.
    """
    valid = [vote.prediction for vote in votes if not vote.failure]
    if len(votes) == 1 or not valid:
        return votes[0]
    probabilities: dict[str, float] = defaultdict(float)
    for prediction in valid:
        for label, probability in (prediction.probabilities or {prediction.label: 1.0}).items():
            probabilities[label] += probability / len(valid)
    counts = Counter(prediction.label for prediction in valid)
    label = max(counts, key=lambda name: (counts[name], probabilities[name]))
    first = next(prediction for prediction in valid if prediction.label == label)
    return Outcome(replace(first, probabilities=dict(sorted(probabilities.items(), key=lambda pair: -pair[1]))))


def given_outcome(row: Row) -> Outcome | None:
    """Return the outcome of a row that came with the teacher's label or answer, None for the others."""
    if "teacher_answer" in row:
        answer = json.loads(row["teacher_answer"])
        return Outcome(Prediction(answer["label"], answer["probabilities"], answer["reasoning"]))
    label = row.get("teacher_label")
    return Outcome(Prediction(label, {}, "")) if label else None


def teacher_label(row: Row, prediction: Prediction) -> TeacherLabel:
    """Return the record of a row.

    Probabilities have four digits: the others vary with an engine's batches, and would make equal labels unequal files.
    """
    confidence = prediction.probabilities.get(prediction.label)
    return TeacherLabel(
        id=row["id"],
        text=row["text"],
        label=prediction.label,
        reasoning=prediction.reasoning or "",
        valid=prediction.label != UNKNOWN,
        confidence=None if confidence is None else round(confidence, 4),
        probabilities={label: round(value, 4) for label, value in sorted(prediction.probabilities.items())},
    )


async def count_stored(labeller: Labeller, rows: Iterable[Row]) -> None:
    """Add every stored answer about the rows to the budget, before the first new one is paid for. The labeller's client
    has to be in `stored_only`.
    """
    for row in rows:
        if not given_outcome(row):
            await labeller.outcome(row)


class TooManyFailures(Exception):
    """More rows have failed than the run may lose. The message says which."""


class LabellingRun:
    """One pass over rows: what it has spent, how many rows are done, and which failed."""

    def __init__(self, teacher: Teacher, program: IntentClassifier, rows: RowSource, runtime: Runtime) -> None:
        self.teacher = teacher
        self.rows = rows
        self.runtime = runtime
        self.requests = teacher.requests(program)
        self.budget = teacher.budget(runtime)
        self.failed: list[dict[str, str]] = []  # rows without a label: id, text, reason, message
        self.causes = Causes()
        self.labelled, self.total = 0, len(rows)
        self.given = 0  # of the labelled rows: their labels came with them

    def label(self, handle: Callable[[Row, Outcome], None]) -> Spending:
        """Call `handle` with each row and its outcome, in order; returns what the answers cost.

        Raises UserError if the teacher refuses to work, the budget would be exceeded, or more than MAX_FAILED of the
        rows fail. The answers until then are kept.
        """
        opened = answer_store(self.teacher.store, self.teacher.busy) if self.teacher.store else nullcontext()
        try:
            with (
                opened as store,
                Progress(f"querying {self.teacher.name}", self.total) as progress,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
            ):
                loop.run(self.label_concurrently(store, progress, handle))
        except ExceptionGroup as group:  # of in_order's tasks
            raise self.reason_to_stop(group.exceptions[0]) from None
        except (EngineError, BudgetExceeded) as error:  # of a batch
            raise self.reason_to_stop(error) from None
        return self.budget.spent

    async def label_concurrently(
        self, store: AnswerStore | None, progress: Progress, handle: Callable[[Row, Outcome], None]
    ) -> None:
        async with self.teacher.connect() as client:
            caching = CachingClient(FailFastClient(client), self.teacher.rate_limit(self.runtime), store, self.budget)
            labeller = Labeller(caching, self.requests, self.teacher.votes)
            if store and self.budget.limited:
                with caching.stored_only():
                    await count_stored(labeller, self.rows)
            if self.teacher.batch:
                await self.complete_in_batches(client, caching)

            async def outcome(row: Row) -> Outcome:
                if given := given_outcome(row):
                    self.given += 1
                    self.labelled += 1
                    progress.update()
                    return given
                try:
                    found = await labeller.outcome(row)
                except EngineRefuses as error:
                    self.add_failed(row, Failure(NO_ANSWER, str(error)))
                    raise
                self.count(row, found)
                invalid = len(self.failed) / (self.labelled + len(self.failed))
                progress.update(note=f"{spent(self.budget.spent)}, {invalid:.1%} invalid")
                return found

            await in_order(outcome, self.rows, self.teacher.max_in_flight(self.runtime), handle)

    async def complete_in_batches(self, client: ChatClient, caching: CachingClient) -> None:
        """Fill the store through the vendor's batch API; what a batch leaves out is requested row by row afterwards."""
        from stages.parts.engines.batch_api import Batches  # the openai package takes a second to import

        assert self.teacher.store and isinstance(client, EngineClient)
        with answer_store(self.teacher.store.with_suffix(".batches.sqlite"), self.teacher.busy) as jobs:
            await Batches(client, caching, jobs).complete_all(self.bodies())

    def bodies(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            if not given_outcome(row):
                yield from request_bodies(row["text"], self.requests, self.teacher.votes)

    def count(self, row: Row, outcome: Outcome) -> None:
        """Count a row; raises TooManyFailures as soon as the run can only end with too many."""
        if not outcome.failure:
            self.labelled += 1
        if failure := outcome.failure:
            self.add_failed(row, failure)
            # An unusable answer's message is the model's own text, another one for each row.
            engine_failed = outcome.prediction is NO_PREDICTION
            self.causes.add(f"{failure.reason}: {failure.message}" if engine_failed else failure.reason)
            if len(self.failed) > max(1, MAX_FAILED * self.total):
                raise TooManyFailures(f"more than {MAX_FAILED:.0%} of {self.total} rows")
            if len(self.failed) == ALL_FAILED and not self.labelled:
                raise TooManyFailures(f"the first {ALL_FAILED} rows all")

    def add_failed(self, row: Row, failure: Failure) -> None:
        self.failed.append({"id": row["id"], "text": row["text"], "reason": failure.reason, "message": failure.message})

    def reason_to_stop(self, error: Exception) -> Exception:
        """Return a UserError for an error that ended the run, if a user can mend it; else the error itself."""
        labelled = f"{self.labelled} of {self.total} rows are labelled"
        reasons = f"{error}{self.causes}"
        needed = [name for name in ("seed", "temperature") if self.teacher.votes > 1 and name in reasons]
        hint = f"; teacher.votes above 1 sends a {needed[0]} with each request" if needed else ""
        if isinstance(error, TooManyFailures):
            return UserError(
                f"{error} got no label: {self.causes}{hint}; check the teacher and run `dvc repro` again, the answers "
                "so far are kept"
            )
        if isinstance(error, BudgetExceeded):
            return UserError(
                f"{error} are spent and the next request could pass it: {labelled}; raise it and run `dvc repro` "
                "again, the answers so far are kept"
            )
        if isinstance(error, EngineRefuses):
            return UserError(f"{error}{hint}; {labelled}, their answers are kept")
        if isinstance(error, EngineError):
            return UserError(f"{error}; {labelled}: run `dvc repro` again, the answers so far are kept")
        return error


def spent(spending: Spending) -> str:
    """Return what was spent for a progress line: dollars, or tokens if no price is known."""
    about = "about " if spending.estimated else ""
    return about + (f"{spending.tokens:,} tokens" if spending.dollars is None else f"${spending.dollars:.2f}")
