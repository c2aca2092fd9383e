"""What `evaluate` measures on the test rows: the content of reports/metrics.json, whose keys others read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json

# Contender -> its arm in the comparison; the decoder's depends on its program.
ARM_OF = {"linear": "linear_cleaned", "encoder": "encoder", "teacher": "teacher"}


class Figures(BaseModel):
    """A block of metrics.json. A field that was not set is not written, so absent and null can differ."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Measure(Figures):
    """A share of `n` rows in [0, 1], with its 95 % interval."""

    accuracy: float
    low: float
    high: float
    n: int


class ProgramAccuracy(Figures):
    """Accuracies of one student with its two programs."""

    plain: float
    optimized: float


class AccuracyByArm(Figures):
    """Accuracy of each arm on the `n` test rows."""

    n: int
    base: ProgramAccuracy
    tuned: ProgramAccuracy
    teacher: float
    majority: float
    encoder: float | None = None
    linear_gold: float | None = None
    linear_teacher: float | None = None
    linear_cleaned: float | None = None
    linear_true: float | None = None


class PoolAccuracy(Figures):
    """Accuracy of the teacher's labels on the whole pool; empty if nobody knows the pool's true labels."""

    pool_accuracy: float | None = None
    pool_low: float | None = None
    pool_high: float | None = None
    pool_n: int | None = None


class ArmFigures(Figures):
    """How an arm answers, and what a query takes.

    `valid` is the share of answers that are a label, `valid_free` the same without constrained decoding. Tokens are
    means. `seconds` is the time of a query with many in flight, `p50_ms` the median of one at a time.
    """

    macro_f1: float
    valid: float
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    valid_free: float | None = None
    seconds: float | None = None
    p50_ms: float | None = None

    @property
    def tokens(self) -> float | None:
        """Tokens of a query, prompt and completion."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class PromiseFigures(Figures):
    """What the gold rows certify about the served pair (stages/parts/numbers/promise.py).

    `kept` says that the `bound` reaches the wanted precision at `threshold`. Otherwise `threshold` is one whose
    `estimate` does, or the highest, and `more_gold_rows` more would certify one (None: no number of them would).
    """

    kept: bool
    threshold: float
    coverage: float
    estimate: float
    bound: float
    gold_rows: int
    more_gold_rows: int | None


class ServedFigures(Figures):
    """The pair that is served.

    `answered` is the share of test rows at or above the threshold, `precision` the share of right answers among them
    (None if there are none). `invalid` counts answers that are no label. `calibration_p` is small if the confidences
    are wrong beyond chance.
    """

    checkpoint: str
    program: Literal["plain", "optimized"]
    accuracy: float
    invalid: int
    calibration_error: float
    calibration_p: float
    calibration_error_before: float
    temperature: float
    threshold: float | None
    wanted_precision: float
    answered: float
    precision: Measure | None
    prompt_tokens: float
    completion_tokens: float
    queries_per_second: float
    p50_ms: float
    p95_ms: float
    promise: PromiseFigures | None = None


class ScopeFigures(Figures):
    """How well the encoder student's familiarity tells texts that no label fits from others.

    `answered` is the share of those outside that it answers at its threshold.
    `at_coverage` maps a share of answered texts inside to that of answered texts outside.
    """

    answered: float
    auroc: float
    at_coverage: dict[str, float]


class OutOfScopeFigures(Figures):
    """How the service treats `n` texts that no label fits. Every answer to one of them is wrong.

    `answered` is the share answered with a label at the threshold, `confident` the share with a confidence of 0.9 or
    more as well, `inside_answered` the share answered of texts that a label fits. `auroc` is the probability that a
    text inside has the higher confidence. `at_coverage` maps a share of answered texts inside to that of answered texts
    outside, None if so many inside are not answered at any confidence. `familiarity` is None without an encoder.
    """

    n: int
    answered: float
    confident: float
    inside_answered: float
    auroc: float
    at_coverage: dict[str, float | None]
    familiarity: ScopeFigures | None


class Difference(Figures):
    """One arm's accuracy minus another's on the same rows: 95 % interval and McNemar's p."""

    low: float
    high: float
    p: float


class ContenderFigures(Figures):
    """What a contender is worth as a service; None is not measured, or does not apply.

    `less` is the accuracy of the best on test minus this one's, None for the best. `answered` is the share of test rows
    that the service does not abstain on, `precision` the share of right answers among them. Milliseconds are of a query
    alone, `rows_per_second` of many at once. MB are of 10^6 bytes: files, and the resident memory of a process that
    answers. `start_s` is from the start of that process to its first answer.
    """

    accuracy: Measure
    macro_f1: float
    less: Difference | None
    temperature: float | None
    threshold: float | None
    answered: float | None
    precision: Measure | None
    calibration_error: float | None
    calibration_p: float | None
    p50_ms: float | None
    p95_ms: float | None
    rows_per_second: float | None
    file_mb: float | None
    memory_mb: float | None
    start_s: float | None


class Metrics(Figures):
    """The whole file. `interval`, `arms` and `served_less` map an arm's name (arms.NAMES) to its figures.

    `rows_to_halve_interval` is how many more test rows would halve the decoder's interval. `served` is the decoder
    pair, `contenders` what one may serve and the teacher; `serve` is the one that `make serve` serves, and `why`.
    """

    profile: str
    source: str
    style: str
    labels: Literal["teacher", "checked", "true"]
    test: AccuracyByArm
    teacher: PoolAccuracy = PoolAccuracy()
    rows_to_halve_interval: int
    interval: dict[str, Measure]
    arms: dict[str, ArmFigures]
    served: ServedFigures
    outside: OutOfScopeFigures | None = None
    served_less: dict[str, Difference]
    serve: str
    why: str
    contenders: dict[str, ContenderFigures]

    @property
    def served_arm(self) -> str:
        return f"tuned_{self.served.program}"

    def arm_of(self, contender: str) -> str:
        return ARM_OF.get(contender, self.served_arm)


def save_metrics(metrics: Metrics, path: Path) -> None:
    write_json(path, metrics.model_dump(exclude_unset=True))


def load_metrics(path: Path) -> Metrics:
    """Read metrics.json; raises UserError if it is missing or from another version of this project."""
    try:
        return Metrics.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}: run `dvc repro evaluate`") from None


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings under dotted names; lists stay whole."""
    import pandas as pd  # here: the service reads these types without pandas

    return {str(name): value for name, value in pd.json_normalize(dict(nested)).to_dict("records")[0].items()}


def flat_numbers(nested: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of nested mappings under dotted names."""
    return {
        name: float(value)
        for name, value in flat(nested).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
