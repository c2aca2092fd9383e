"""Queries to a teacher that is slow, down, out of budget or gone half way."""

import asyncio

import pytest

from stages.parts.engines.budget import BudgetExceeded
from stages.parts.engines.http_client import EngineError, EngineRefuses, RequestRefused
from stages.parts.engines.requests import Failure, Outcome, Prediction
from stages.parts.traffic.escalation import FAILURES_TO_OPEN, Circuit, Escalation, TeacherUnavailable

LABELLED = Outcome(Prediction("refund", {"refund": 0.8, "fee": 0.2}, None, 100, 5))


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Teacher:
    """A teacher that does as it is told and counts its queries."""

    def __init__(self, behaviour) -> None:
        self.behaviour, self.queries = behaviour, 0

    async def __call__(self, text: str) -> Outcome:
        self.queries += 1
        if isinstance(self.behaviour, Exception):
            raise self.behaviour
        if isinstance(self.behaviour, float):
            await asyncio.sleep(self.behaviour)
        return LABELLED if isinstance(self.behaviour, float) else self.behaviour


def escalation(behaviour, clock: Clock | None = None) -> tuple[Escalation, Teacher]:
    teacher = Teacher(behaviour)
    return Escalation(teacher, lambda outcome: 0.001, 0.05, Circuit(clock or Clock())), teacher


def reason(queried: Escalation) -> str:
    with pytest.raises(TeacherUnavailable) as raised:
        asyncio.run(queried.query("hello"))
    return raised.value.reason


def test_an_answer_has_label_confidence_and_price():
    found = asyncio.run(escalation(LABELLED)[0].query("hello"))
    assert (found.label, found.confidence, found.dollars) == ("refund", 0.8, 0.001)


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (1.0, "slow"),
        (EngineError("gone"), "down"),
        (EngineRefuses("key"), "down"),
        (Outcome.of(EngineError("gone")), "down"),
        (BudgetExceeded("all"), "budget"),
        (Outcome.of(RequestRefused("content")), "refused"),
        (Outcome(Prediction("unknown", {}), Failure("it names none of the labels", "")), "refused"),
    ],
)
def test_the_reason_is_told_apart(behaviour, expected):
    assert reason(escalation(behaviour)[0]) == expected


def test_a_teacher_that_is_down_is_left_alone_and_tried_again_with_growing_pauses():
    clock = Clock()
    queried, teacher = escalation(EngineError("gone"), clock)
    for _ in range(FAILURES_TO_OPEN + 10):
        assert reason(queried) == "down"
    assert teacher.queries == FAILURES_TO_OPEN and queried.circuit.is_open

    clock.now = 1.1  # half open: one trial, which fails
    assert reason(queried) == reason(queried) == "down"
    assert teacher.queries == FAILURES_TO_OPEN + 1
    clock.now += 1.1  # the pause is twice as long now
    reason(queried)
    assert teacher.queries == FAILURES_TO_OPEN + 1

    clock.now += 1.0
    teacher.behaviour = LABELLED
    asyncio.run(queried.query("hello"))
    assert not queried.circuit.is_open
    teacher.behaviour = EngineError("gone again")
    for _ in range(FAILURES_TO_OPEN - 1):
        reason(queried)
    assert not queried.circuit.is_open  # the count began anew


@pytest.mark.parametrize("behaviour", [BudgetExceeded("all"), Outcome.of(RequestRefused("content"))])
def test_neither_the_budget_nor_a_refused_text_opens_the_circuit(behaviour):
    queried, teacher = escalation(behaviour)
    for _ in range(3 * FAILURES_TO_OPEN):
        reason(queried)
    assert teacher.queries == 3 * FAILURES_TO_OPEN


def test_a_trial_whose_client_goes_away_leaves_the_next_query_its_turn():
    clock = Clock()
    queried, teacher = escalation(EngineError("gone"), clock)
    for _ in range(FAILURES_TO_OPEN):
        reason(queried)
    clock.now, teacher.behaviour = 2.0, 10.0
    queried.timeout_s = 20

    async def hang_up() -> None:
        trial = asyncio.create_task(queried.query("hello"))
        await asyncio.sleep(0.01)
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        teacher.behaviour = LABELLED
        await queried.query("hello")

    asyncio.run(hang_up())
    assert not queried.circuit.is_open
