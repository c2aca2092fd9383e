"""Confidence that means what it says: temperature scaling, and the confidence from which answers are right often
enough.

Temperature scaling: Guo et al. 2017, On Calibration of Modern Neural Networks. Abstaining below a threshold: El-Yaniv
and Wiener 2010.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.optimize import minimize_scalar

from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json

TINY = 1e-6  # stands for a probability that an engine did not report
TEMPERATURES = (0.2, 10.0)


class Calibration(BaseModel):
    """How to read the probabilities of the pair with these hashes. `threshold` is the lowest confidence worth an
    answer, or None where none is; `coverage` and `precision` are what it gave on the `rows` that it was chosen on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_sha256: str
    program_sha256: str
    temperature: float
    threshold: float | None
    wanted_precision: float
    rows: int
    coverage: float
    precision: float | None


def load_calibration(path: Path) -> Calibration:
    """Read a calibration; raises UserError where it is missing or from another version of this project."""
    try:
        return Calibration.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}: run `dvc repro calibrate`") from None


def calibrated(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The same labels at another temperature, summing to 1, likeliest first."""
    scaled = {label: probability ** (1 / temperature) for label, probability in probabilities.items()}
    total = sum(scaled.values())
    return {label: value / total for label, value in sorted(scaled.items(), key=lambda pair: -pair[1])} if total else {}


def best_temperature(
    distributions: Sequence[Mapping[str, float]], labels: Sequence[str], certainty: Sequence[float]
) -> float:
    """The temperature at which labels that are true with probability `certainty` are least surprising."""

    def surprise(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        likely = [
            calibrated(found, temperature).get(label, 0.0) for found, label in zip(distributions, labels, strict=True)
        ]
        believed, sure = np.clip(likely, TINY, 1 - TINY), np.asarray(certainty)
        return -float(np.mean(sure * np.log(believed) + (1 - sure) * np.log(1 - believed)))

    bounds = tuple(math.log(bound) for bound in TEMPERATURES)
    return math.exp(float(minimize_scalar(surprise, bounds=bounds, method="bounded").x))


def lowest_threshold(confidence: Sequence[float], right: Sequence[float], precision: float) -> float | None:
    """The lowest confidence such that of the rows at or above it a share of `precision` is right; None where there is
    none.

    `right` is the probability that a row's answer is. The share is (right + 1) / (rows + 2), Laplace's rule of
    succession: a lucky handful of rows proves little.
    """
    order = np.argsort(-np.asarray(confidence), kind="stable")
    surest = np.asarray(confidence)[order]
    share = (np.cumsum(np.asarray(right, float)[order]) + 1) / (np.arange(len(order)) + 3)
    last_of_its_value = np.append(surest[1:] != surest[:-1], True)
    enough = np.flatnonzero((share >= precision) & last_of_its_value[: len(surest)])
    return float(surest[enough[-1]]) if len(enough) else None
