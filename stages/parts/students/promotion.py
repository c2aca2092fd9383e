"""Promote a student that runs in the process, or go back to the one before; a running service swaps by itself.

python -m stages.parts.students.promotion promote FOLDER [--other-labels]
python -m stages.parts.students.promotion rollback

Takes what an in-process student takes: no torch, no DSPy. A student is copied, checked and renamed before promoted.json
names it, and that file is replaced at once: whatever ends this leaves the one or the other.
"""

import argparse
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256, read_json, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.students.local import (
    CALIBRATION,
    HELD_OUT,
    LocalClassifier,
    load_local,
    of_student,
    own_folder,
    served_folder,
)
from stages.parts.students.promoted import HISTORY, Promotions, promoted_folder, read_promotions
from stages.parts.task.student_file import read_student_file

KEPT = 5  # promoted students whose folders stay
PROBES = ("hello", "?", "a" * 4000)


@contextmanager
def alone() -> Iterator[None]:
    """Let one promotion run at a time: a second one waits."""
    paths.PROMOTED.mkdir(parents=True, exist_ok=True)
    with (paths.PROMOTED / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for draft in paths.PROMOTED.glob(".draft-*"):  # of a killed one
            shutil.rmtree(draft, ignore_errors=True)
        yield


def checked(folder: Path) -> LocalClassifier:
    """Load a student and let it predict; raises UserError if it can't, or its confidence is no number."""
    local = load_local(folder)
    try:
        found = local.classify(PROBES)
    except Exception as error:  # onnxruntime and numpy raise what they like
        raise UserError(f"{folder} predicts nothing: {error}") from None
    if not all(0 <= prediction.confidence <= 1 for prediction in found):
        raise UserError(f"{folder} has a confidence of {found[0].confidence}: train it again")
    return local


def served_labels(params: Params) -> list[str] | None:
    """Return the labels of the student that is served now; None if there is none."""
    if not promoted_folder() and not paths.SERVED.exists():
        return None
    folder = served_folder(params)
    if folder:
        student = read_student_file(folder)
        return student.labels if student else None
    labels: list[str] = read_json(paths.SIDECAR)["labels"]
    return labels


def check_labels(folder: Path, labels: list[str], params: Params) -> None:
    """Raise UserError if a student has other labels than the served one."""
    served = served_labels(params)
    if served is None or set(served) == set(labels):
        return
    more, fewer = sorted(set(labels) - set(served)), sorted(set(served) - set(labels))
    changes = "; ".join(f"{what} {', '.join(names)}" for what, names in (("new", more), ("gone", fewer)) if names)
    raise UserError(
        f"{folder} has other labels than the served student ({changes}): promote it with --other-labels if your "
        "clients know them (make promote OTHER_LABELS=1)"
    )


def promote(folder: Path, params: Params, other_labels: bool) -> LocalClassifier:
    """Make a copy of a student's folder the served one, with its calibration and held-out rows; return it loaded.

    Raises UserError, and changes nothing, if the folder is not whole or its labels are others.
    """
    if params.serve.model != "auto":
        raise UserError(
            f"params.yaml serves the {params.serve.model} whatever is promoted: set serve.model to auto first"
        )
    with alone(), TemporaryDirectory(dir=paths.PROMOTED, prefix=".draft-", ignore_cleanup_errors=True) as scratch:
        checked(folder)  # its errors name the given folder
        draft = Path(scratch) / "student"
        shutil.copytree(folder, draft)
        for name in (CALIBRATION, HELD_OUT):
            if not (file := of_student(folder, name)).is_file():
                raise UserError(f"{file} is missing: copy it from the run that made {folder}")
            if not (draft / name).exists():
                shutil.copyfile(file, draft / name)
        local = checked(draft)
        if not other_labels:
            check_labels(folder, local.student.labels, params)
        sha256 = folder_sha256(draft)
        to = paths.PROMOTED / f"{local.student.kind}-{sha256[:12]}"
        if not to.is_dir() or folder_sha256(to) != sha256:
            shutil.rmtree(to, ignore_errors=True)
            draft.rename(to)
        names = [*(name for name in read_promotions().names if name != to.name), to.name][-KEPT:]
        write_json(HISTORY, Promotions(names=names).model_dump())
        for old in paths.PROMOTED.iterdir():
            if old.is_dir() and old.name not in names and not old.name.startswith(".draft-"):
                shutil.rmtree(old, ignore_errors=True)
    return local


def rollback(params: Params) -> LocalClassifier | None:
    """Make the student before the promoted one the served one, at last the run's own choice; return it loaded, None
    for the decoder. Raises UserError, and changes nothing, if nothing is promoted or the one before can't be served.
    """
    with alone():
        names = read_promotions().names[:-1]
        if not promoted_folder():
            raise UserError("nothing is promoted, so there is nothing to go back from")
        folder = paths.PROMOTED / names[-1] if names else own_folder(params)
        before = checked(folder) if folder else None
        write_json(HISTORY, Promotions(names=names).model_dump())
    return before


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.parts.students.promotion", description=__doc__.split(";")[0]
    )
    commands = parser.add_subparsers(dest="command", metavar="promote | rollback", required=True)
    promoting = commands.add_parser("promote", help="serve a copy of this student from now on")
    promoting.add_argument("folder", type=Path, help="such as models/encoder, its calibration and held-out rows beside")
    promoting.add_argument("--other-labels", action="store_true", help="though it has other labels than the served one")
    commands.add_parser("rollback", help="serve the student before; after the first one the run's own choice")
    given = parser.parse_args()
    with command("promotion"):
        params = load_params()
        if given.command == "promote":
            local: LocalClassifier | None = promote(given.folder, params, given.other_labels)
        else:
            local = rollback(params)
        if local is None:
            print("the run's own decoder is the served one: restart the service")
        else:
            print(f"{local.model} is the served one: a running service swaps within seconds and logs it")


if __name__ == "__main__":
    main()
