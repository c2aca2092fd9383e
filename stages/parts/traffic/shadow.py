"""A second student beside the served one: it predicts the same queries, and nobody gets its answers.

`python -m stages.parts.traffic compare` compares both on the stored queries and on gold rows.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.parts.encoder.student import read_student
from stages.parts.numbers.calibration import StudentCalibration, calibrated, load_calibration
from stages.parts.numbers.held_out import TextModel
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256, iter_jsonl
from stages.parts.students.linear import read_linear
from stages.parts.task.student_file import read_student_file
from stages.parts.traffic.shadow_rows import ShadowAnswer, ShadowedRow


class Shadow:
    """An encoder or linear student in a folder, with its calibration beside: FOLDER_calibration.json.

    Raises UserError if one of them is missing, or they do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        found = read_student_file(folder)
        if not found:
            raise UserError(f"{folder} holds no student that runs in this process: set serve.shadow to another folder")
        calibration = beside(folder, "calibration.json")
        self.calibration = load_calibration(calibration, StudentCalibration)
        if self.calibration.student_sha256 != folder_sha256(folder):
            raise UserError(f"{calibration} is of another student than {folder}: copy both from one run")
        self.name = found.name
        student: TextModel | None = read_student(folder) if found.kind == "encoder" else read_linear(folder)
        assert student, "student.json names one"
        self.student = student

    def predict(self, text: str) -> ShadowAnswer:
        """Return the calibrated prediction of a text; takes milliseconds."""
        [shares] = self.student.probabilities([text])
        likely = zip(self.student.labels, map(float, shares), strict=True)
        return calibrated_answer(dict(likely), self.calibration)


def beside(folder: Path, what: str) -> Path:
    """Return the path of a file that belongs to a student's folder: models/encoder_WHAT of models/encoder."""
    return folder.with_name(f"{folder.name}_{what}")


def calibrated_answer(probabilities: dict[str, float], calibration: Any) -> ShadowAnswer:
    label, confidence = next(iter(calibrated(probabilities, calibration.temperature).items()), ("", 0.0))
    return ShadowAnswer(label, calibration.threshold is not None and confidence >= calibration.threshold)


def share(values: Iterable[bool]) -> str:
    """Return the share of true values in percent, with the count of all."""
    found = list(values)
    return f"{sum(found) / len(found):.1%} of {len(found)}" if found else "none"


def compared_live(rows: Sequence[ShadowedRow]) -> str:
    """Return two lines: how often each student answers, and how often the teacher agrees with each."""
    from stages.parts.numbers.statistics import difference_interval  # scikit-learn: a second

    judged = [row for row in rows if row.teacher_label is not None]
    right = [[getattr(row, side).label == row.teacher_label for row in judged] for side in ("student", "shadow")]
    answered = [
        share(getattr(row, side).label == row.teacher_label for row in judged if getattr(row, side).answers)
        for side in ("student", "shadow")
    ]
    lines = [
        f"live: answered by the student {share(row.student.answers for row in rows)}, by the shadow "
        f"{share(row.shadow.answers for row in rows)}; equal labels "
        f"{share(row.student.label == row.shadow.label for row in rows)}"
    ]
    if judged:
        low, high = difference_interval(right[1], right[0])
        lines.append(
            f"with the teacher's label: right among answers {answered[0]} (student), {answered[1]} (shadow); of all "
            f"{share(right[0])}, {share(right[1])}; shadow minus student {100 * low:+.1f} to {100 * high:+.1f} points"
        )
    return "\n".join(lines)


def compared_on_gold(student: Path, shadow: Path) -> str:
    """Return a line on the gold rows that two held-out files share."""
    from stages.parts.numbers.statistics import difference_interval  # scikit-learn: a second

    first, second = (
        {
            row["id"]: next(iter(row["probabilities"]), "") == row["label"]
            for row in iter_jsonl(file)
            if row["by"] == "hand"
        }
        for file in (student, shadow)
    )
    both = sorted(first.keys() & second.keys())
    if not both:
        return f"gold: {student} and {shadow} share no row"
    right = [first[row] for row in both], [second[row] for row in both]
    low, high = difference_interval(right[1], right[0])
    return (
        f"gold: right {share(right[0])} (student), {share(right[1])} (shadow); shadow minus student "
        f"{100 * low:+.1f} to {100 * high:+.1f} points"
    )
