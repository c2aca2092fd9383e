"""Calibrated confidence: temperature scaling, and the threshold below which the service abstains.

Temperature scaling: Guo et al. 2017, On Calibration of Modern Neural Networks. Abstaining below a threshold: El-Yaniv
and Wiener 2010.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.numbers.metrics import PromiseFigures
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json

TINY = 1e-6  # in place of a probability that an engine did not report
TEMPERATURES = (0.2, 10.0)


class Calibration(BaseModel):
    """How to read a student's probabilities.

    `threshold` is the lowest confidence that is answered, None if the service abstains on every query. `coverage` and
    `precision` are the estimates for it on held-out `rows`. `promise` is None if no gold row can certify anything.
    A text of less than `least_familiarity` is out of scope; None if the student can't tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float
    threshold: float | None
    wanted_precision: float
    rows: int
    coverage: float
    precision: float | None
    promise: PromiseFigures | None = None
    least_familiarity: float | None = None


class PairCalibration(Calibration):
    """The calibration of the pair with these hashes."""

    checkpoint_sha256: str
    program_sha256: str


class StudentCalibration(Calibration):
    """The calibration of the in-process student whose folder has this hash (run/files.py, `folder_sha256`)."""

    student_sha256: str


AnyCalibration = TypeVar("AnyCalibration", bound=Calibration)


def load_calibration(path: Path, kind: type[AnyCalibration]) -> AnyCalibration:
    """Read a calibration; raises UserError if it is missing, of no student, or from another version of this project."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}: run `dvc repro calibrate`") from None


def calibrated(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Return the probabilities at another temperature, summing to 1, the most likely label first."""
    scaled = {label: probability ** (1 / temperature) for label, probability in probabilities.items()}
    total = sum(scaled.values())
    return {label: value / total for label, value in sorted(scaled.items(), key=lambda pair: -pair[1])} if total else {}


def best_temperature(
    distributions: Sequence[Mapping[str, float]], labels: Sequence[str], certainty: Sequence[float]
) -> float:
    """Return the temperature with the least log loss on labels that are true with probability `certainty`."""
    from scipy.optimize import minimize_scalar  # here: the service reads calibrations without scipy

    def log_loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        likely = [
            calibrated(found, temperature).get(label, 0.0) for found, label in zip(distributions, labels, strict=True)
        ]
        believed, sure = np.clip(likely, TINY, 1 - TINY), np.asarray(certainty)
        return -float(np.mean(sure * np.log(believed) + (1 - sure) * np.log(1 - believed)))

    bounds = tuple(math.log(bound) for bound in TEMPERATURES)
    return math.exp(float(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))
