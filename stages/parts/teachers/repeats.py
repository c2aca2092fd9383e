"""The teacher against itself: some pool rows answered a second time. What gets two labels, no student can learn."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import uvloop

from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.engines.budget import Budget, BudgetExceeded
from stages.parts.engines.caching_client import CachingClient, in_order
from stages.parts.engines.errors import EngineRefuses
from stages.parts.engines.requests import Outcome
from stages.parts.run.answer_store import answer_store
from stages.parts.run.files import fingerprint
from stages.parts.run.params import Runtime
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.labelling import Labeller
from stages.parts.teachers.teacher import Teacher


@dataclass(frozen=True)
class Repeats:
    """How many rows were answered a second time, and how many of them got another label."""

    rows: int
    two_labels: int


def rows_to_repeat(labels: Iterable[TeacherLabel], count: int, seed: int) -> list[TeacherLabel]:
    """Return `count` of the rows with a label, drawn by the seed and their ids; all, if there are fewer."""
    valid = (row for row in labels if row["valid"])
    return heapq.nsmallest(count, valid, key=lambda row: fingerprint(f"{seed} {row['id']}"))


def repeated(
    teacher: Teacher, program: IntentClassifier, labelled: list[TeacherLabel], runtime: Runtime, budget: Budget
) -> Repeats | None:
    """Query the teacher once more for rows that it has labelled; None if it gives the same answer by construction.

    Second answers are stored separately, so that a killed run does not pay for them twice. They are optional: if the
    budget is spent or the endpoint refuses, the remaining rows are skipped and a line says so.
    """
    if not teacher.store or not labelled:
        return None
    rows = [Row(id=row["id"], text=row["text"]) for row in labelled]
    first = {row["id"]: row["label"] for row in labelled}
    found: list[bool] = []

    def handle(row: Row, outcome: Outcome) -> None:
        if not outcome.failure:
            found.append(outcome.prediction.label == first[row["id"]])

    async def query() -> None:
        assert teacher.store
        with answer_store(teacher.store.with_suffix(".again.sqlite"), teacher.busy) as store:
            async with teacher.connect() as client:
                caching = CachingClient(client, teacher.rate_limit(runtime), store, budget)
                labeller = Labeller(caching, teacher.requests(program), teacher.votes)
                await in_order(labeller.outcome, rows, teacher.max_in_flight(runtime), handle)

    try:
        uvloop.run(query())
    except* (BudgetExceeded, EngineRefuses) as stopped:
        print(f"{len(found)} of {len(rows)} rows are answered a second time: {stopped.exceptions[0]}")
    return Repeats(len(found), len(found) - sum(found)) if found else None
