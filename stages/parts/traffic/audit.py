"""What audits are compared with: how often student and teacher should agree, and the teacher with itself."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from scipy.stats import beta

from stages.parts.data.rows import TeacherLabel
from stages.parts.numbers.calibration import Calibration, calibrated
from stages.parts.run.errors import UserError
from stages.parts.students.prediction import abstention
from stages.parts.task.labels import UNKNOWN

SELF_AGREEMENT = 0.95  # the teacher's with its earlier labels, at least: room for answers that vary at temperature 0
DOUBT = 0.05  # the chance that the true share lies below the bound


def expected_agreement(held_out: Iterable[Mapping[str, Any]], calibration: Calibration) -> float:
    """Return a lower bound on the share of confident predictions that the teacher agrees with, in (0, 1).

    From the rows of models/held_out.jsonl that have the teacher's labels: the student has not learned them. The bound
    is Clopper and Pearson's, at 95 %: with the plain share the alarm would be raised when nothing has changed. Raises
    UserError if the student is confident on none of them.
    """
    rows = agreed = 0
    for row in held_out:
        label, confidence = next(
            iter(calibrated(row["probabilities"], calibration.temperature).items()), (UNKNOWN, 0.0)
        )
        if row["by"] == "teacher" and not abstention(label, confidence, calibration, row.get("familiarity")):
            rows += 1
            agreed += label == row["label"]
    if not agreed:
        raise UserError(
            "the student is confident on no held-out row, so there is nothing to audit: set serve.audit to 0"
        )
    return float(beta.ppf(DOUBT, agreed, rows - agreed + 1))


def rows_to_check(labels: Iterable[TeacherLabel], count: int) -> list[TeacherLabel]:
    """Return the first rows with a label of the teacher's own: the same ones in each start of the service."""
    return list(islice((row for row in labels if row["valid"]), count))
