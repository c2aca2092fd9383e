"""A student that runs in this process: its folder, with the calibration of its confidence.

`models/encoder` is such a folder, with models/encoder_calibration.json and encoder_held_out.jsonl beside it. A folder
that travels alone holds its calibration.json itself, and its held_out.jsonl if it is audited or promoted. Importing
this takes onnxruntime, tokenizers, numpy and pydantic: no torch, no DSPy.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.parts.encoder.student import EncoderStudent
from stages.parts.numbers.calibration import StudentCalibration, load_calibration
from stages.parts.numbers.choice import IN_PROCESS, Contender, load_choice
from stages.parts.numbers.held_out import TextModel
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256
from stages.parts.run.params import Params
from stages.parts.students.linear import LinearStudent
from stages.parts.students.prediction import CalibratedPrediction, calibrated_prediction
from stages.parts.students.promoted import promoted_folder
from stages.parts.task.student_file import STUDENT, StudentFile, read_student_file
from stages.parts.task.text import readable

CALIBRATION, HELD_OUT, CARD = "calibration.json", "held_out.jsonl", "README.md"
NOT_THE_STUDENT = (CALIBRATION, HELD_OUT, CARD)  # what a student's folder holds beside it
MODELS: dict[str, Callable[[Path, Sequence[str]], TextModel]] = {"encoder": EncoderStudent, "linear": LinearStudent}


class LocalClassifier:
    """A QueryClassifier: predictions are computed in threads, one query each, so that the event loop stays free."""

    def __init__(self, folder: Path, student: StudentFile, model: TextModel, calibration: StudentCalibration) -> None:
        self.folder = folder
        self.student = student
        self.calibration = calibration
        self.local = model
        self.workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "student")

    @property
    def model(self) -> str:
        return self.student.name

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.student.labels)

    @property
    def pair(self) -> str:
        return f"{self.model} {self.calibration.model_dump_json()}"

    def shown(self, query: str) -> str:
        return readable(query)

    async def predict(self, query: str) -> CalibratedPrediction:
        return (await asyncio.get_running_loop().run_in_executor(self.workers, self.classify, [query]))[0]

    def classify(self, queries: Sequence[str]) -> list[CalibratedPrediction]:
        """Return the predictions of queries; blocks."""
        found = self.local.read(queries)
        familiarity = [None] * len(queries) if found.familiarity is None else found.familiarity.tolist()
        return [
            calibrated_prediction(
                self.labels[int(shares.argmax())],
                dict(zip(self.labels, shares.tolist(), strict=True)),
                self.calibration,
                self.model,
                near,
            )
            for shares, near in zip(found.probabilities, familiarity, strict=True)
        ]


def beside(folder: Path, what: str) -> Path:
    """Return the path of a file that belongs to a student's folder: models/encoder_WHAT of models/encoder."""
    return folder.with_name(f"{folder.name}_{what}")


def of_student(folder: Path, what: str) -> Path:
    """Return the path of a file that belongs to a student's folder, in it or beside it."""
    return folder / what if (folder / what).is_file() else beside(folder, what)


def load_local(folder: Path) -> LocalClassifier:
    """Load a student's folder with the calibration in it, or beside it; raises UserError if a file is missing, or they
    do not belong together.
    """
    if not (folder / STUDENT).is_file():
        raise UserError(f"{folder} holds no {STUDENT}: name a student's folder, such as {paths.ENCODER}")
    student = read_student_file(folder)
    if student is None:
        raise UserError(f"{folder} holds no student: the run that wrote it had none of this kind")
    file = of_student(folder, CALIBRATION)
    found = load_calibration(file, StudentCalibration)
    if found.student_sha256 != folder_sha256(folder, but=NOT_THE_STUDENT):
        raise UserError(
            f"{file} is of another student than {folder}: run `dvc repro calibrate`, or copy both from one run"
        )
    try:
        model = MODELS[student.kind](folder, student.labels)
    except UserError:
        raise
    except Exception as error:  # onnxruntime and numpy raise what they like
        raise UserError(f"{folder} can't be loaded ({error}): copy it again from the run that made it") from None
    return LocalClassifier(folder, student, model, found)


def chosen_contender(params: Params) -> Contender:
    """Return what `serve.model` names, or stage calibrate chose for it; raises UserError if the choice is missing or of
    another profile.
    """
    if params.serve.model != "auto":
        return params.serve.model
    choice = load_choice(paths.SERVED)
    if choice.profile != params.profile:
        raise UserError(
            f"{paths.SERVED} is of profile {choice.profile}, params.yaml wants {params.profile}: run `dvc repro`"
        )
    return choice.serve


def own_folder(params: Params) -> Path | None:
    """Return the folder of the run's own choice; None for the decoder."""
    contender = chosen_contender(params)
    return None if contender == "decoder" else IN_PROCESS[contender][0]


def served_folder(params: Params) -> Path | None:
    """Return the folder of the in-process student to serve, promoted or the run's own; None for the decoder."""
    promoted = promoted_folder() if params.serve.model == "auto" else None
    return promoted or own_folder(params)


def local_student(params: Params, folder: Path | None) -> LocalClassifier | None:
    """Return the in-process student to serve, of `folder` if it is given; None if the decoder is to be served."""
    folder = folder or served_folder(params)
    return load_local(folder) if folder else None


def held_out_file(folder: Path | None) -> Path:
    """Return the file of predictions that the confidence of the student in a folder was calibrated on; None: of the
    decoder.
    """
    return of_student(folder, HELD_OUT) if folder else paths.HELD_OUT
