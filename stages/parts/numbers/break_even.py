"""After how many queries a student has paid for its labels and its training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stages.parts.numbers.metrics import ContenderFigures
from stages.parts.run.params import Params

MILLION = 1_000_000
# Stages whose machine time is the price of training, beside that of labelling.
TRAINING = tuple("raw filter split embed sft base lora linear encoder optimize calibrate".split())


@dataclass(frozen=True)
class Spent:
    """The dollars that a run cost; None is not known."""

    labelling: float | None
    training: float | None


@dataclass(frozen=True)
class BreakEven:
    """When the served contender has paid for its labels and its training. None is not known.

    Prices are dollars, of a thousand or a million queries; `labelling` and `training` are what the run cost.
    `escalated` is the share of queries on which the student abstains and the teacher answers. `saved_per_million` is
    the saving against the teacher alone, negative for a loss. `queries` is also None if the student never
    pays for itself.
    """

    prices_date: str
    teacher_per_thousand: float | None
    student_per_million: float
    labelling: float | None
    training: float | None
    escalated: float
    saved_per_million: float | None
    queries: int | None


def machine_price(params: Params, contender: str) -> float:
    """Return the dollars of an hour of the machine that a contender runs on."""
    on_gpus = contender == "decoder" and params.student_on_gpus
    return params.report.gpu_price_per_hour if on_gpus else params.report.cpu_price_per_hour


def student_price(params: Params, contender: str, figures: ContenderFigures) -> float | None:
    """Return the dollars of a million queries, many at once; None if a student's speed was not measured."""
    speed = figures.rows_per_second
    return None if speed is None else MILLION / speed * machine_price(params, contender) / 3600


def machine_dollars(seconds: Mapping[str, float], stages: tuple[str, ...], per_hour: float) -> float | None:
    """Return what the machine's time of some stages costs; None unless all of them were measured."""
    if any(stage not in seconds for stage in stages):
        return None
    return sum(seconds[stage] for stage in stages) * per_hour / 3600


def break_even(
    teacher: float | None,
    student: float,
    answered: float,
    spent: Spent,
    prices_date: str,
) -> BreakEven:
    """Return when a student has paid for itself, if the teacher answers each query on which it abstains.

    `teacher` and `student` are the dollars of a query, None if they are not known. What was not measured of `spent`
    counts as nothing. `answered` is the share of queries that the student answers.
    """
    saved = None if teacher is None else answered * teacher - student
    to_earn = (spent.labelling or 0.0) + (spent.training or 0.0)
    return BreakEven(
        prices_date=prices_date,
        teacher_per_thousand=None if teacher is None else 1000 * teacher,
        student_per_million=MILLION * student,
        labelling=spent.labelling,
        training=spent.training,
        escalated=1 - answered,
        saved_per_million=None if saved is None else MILLION * saved,
        queries=math.ceil(to_earn / saved) if saved is not None and saved > 0 else None,
    )
