"""After how many queries a student has paid for its labels and its training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stages.parts.numbers.metrics import BreakEven
from stages.parts.run import paths
from stages.parts.run.files import read_json

MILLION = 1_000_000
# Stages whose machine time is the price of training, beside that of labelling.
TRAINING = tuple("raw filter split embed sft base lora linear encoder optimize calibrate".split())


@dataclass(frozen=True)
class Spent:
    """The dollars that a run cost; None is not known."""

    labelling: float | None
    training: float | None


def stage_seconds() -> dict[str, float]:
    """Return how long each stage took on this machine; one whose outputs came from DVC's cache has no time."""
    files = {stage: paths.TIMES / f"{stage}.json" for stage in (*TRAINING, "teacher")}
    return {stage: read_json(file)["seconds"] for stage, file in files.items() if file.is_file()}


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
