"""student.json: what the folder of a student holds that runs in the process. A decoder has its program's sidecar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256, read_json, write_json

STUDENT = "student.json"


class StudentFile(BaseModel):
    """An in-process student: its kind, its name with a hash of its other files, and its labels in the graph's order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encoder", "linear"]
    name: str
    labels: list[str]


def write_student_file(folder: Path, kind: Literal["encoder", "linear"], labels: Sequence[str]) -> StudentFile:
    """Write student.json beside the student's other files, which must be there: its name has their hash."""
    (folder / STUDENT).unlink(missing_ok=True)
    student = StudentFile(kind=kind, name=f"{kind}-{folder_sha256(folder)[:12]}", labels=list(labels))
    write_json(folder / STUDENT, student.model_dump())
    return student


def write_no_student(folder: Path) -> None:
    """Write a folder that holds no student: DVC wants each output of a stage."""
    write_json(folder / STUDENT, None)


def read_student_file(folder: Path) -> StudentFile | None:
    """Return what a folder holds, None if the run has no such student; raises UserError if the file is missing or
    another version's.
    """
    found = read_json(folder / STUDENT)
    try:
        return StudentFile.model_validate(found) if found is not None else None
    except ValidationError as error:
        raise UserError(f"{folder / STUDENT}: {error.errors()[0]['msg']}: run `dvc repro`") from None
