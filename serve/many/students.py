"""The students that are served together: models/students.

models/students/NAME is a link to NAME-HASH, a folder with adapter, program, sidecar and calibration that never changes.
The folder's name is also the adapter's name in the engine, so another student under the same NAME is another folder.
The engine may read an adapter again at any time: from a path whose weights had changed it would answer wrongly under
the old name. A student that is replaced stays until the service has the new one in its place.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.parts.engines.engine import AdapterSlots, EngineKind, refuse_trained_modules
from stages.parts.engines.vllm import adapter_rank
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, folder_sha256, whole_folder
from stages.parts.students.pair import PAIR_FILES, Classifier, check_present, load_pair
from stages.parts.students.serving import is_adapter
from stages.parts.task.program_file import load_sidecar

STUDENTS = Path("models/students")
ADAPTER = "adapter"
NAME = re.compile(r"(?!healthz$|readyz$)[a-z][a-z0-9_]{0,40}")  # without hyphens: what has one is a folder, not a name


@dataclass(frozen=True)
class ManyStudent:
    """A student as it is served: the folder it was read from, its adapter there, its classifier."""

    folder: Path
    classifier: Classifier

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER


def students() -> dict[str, Path]:
    """Return the folders of the students, by name; absolute paths."""
    return {link.name: link.resolve() for link in sorted(STUDENTS.glob("[a-z]*")) if link.is_symlink()}


def former(name: str) -> list[Path]:
    """Return the folders that a name was linked to before, newest first. What `add` is about to link is younger than
    the link.
    """
    link = STUDENTS / name
    try:
        since, current = link.lstat().st_mtime_ns, link.resolve()
        written = {folder.resolve(): folder.stat().st_mtime_ns for folder in STUDENTS.glob(f"{name}-*")}
    except FileNotFoundError:  # they are being removed
        return []
    return sorted(
        (folder for folder in written if folder != current and written[folder] <= since),
        key=lambda folder: -written[folder],
    )


def files_fingerprint(files: Iterable[Path]) -> str:
    """Return the hash in a folder's name: of program, sidecar and calibration, which hold the hash of the adapter."""
    return fingerprint("".join(map(file_sha256, files)))


def is_whole(folder: Path) -> bool:
    """Whether a student's folder is what `add` wrote."""
    files = [folder / file for file in PAIR_FILES]
    if not all(file.is_file() for file in files) or folder.name.rpartition("-")[2] != files_fingerprint(files):
        return False
    return folder_sha256(folder / ADAPTER) == load_sidecar(folder / paths.SIDECAR.name).checkpoint_sha256


def read_student(name: str, folder: Path, kind: EngineKind) -> ManyStudent:
    """Read a student, whose adapter is served under its folder's name; raises UserError if something is missing or
    changed.
    """
    if not is_whole(folder):
        raise UserError(f"{folder} is damaged: add {name} again")
    return ManyStudent(folder, load_pair(folder).classifier(kind, folder.name))


def add(name: str, repository: Path, base: Path, slots: AdapterSlots) -> None:
    """Add, under a name, the student that `optimize` chose in a repository; it replaces one of the same name.

    Raises UserError if it is not whole, or could not be served on this base.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a student: small letters, digits and _ alone, beginning with a letter"
        )
    pair = load_pair(repository / paths.SIDECAR.parent)
    pair.check_weights(repository)
    check_adapter(repository / pair.checkpoint, slots.max_rank)
    check_present(base)
    if (own := folder_sha256(base)) != (wanted := pair.sidecar.base_sha256):
        raise UserError(f"the student of {repository} stands on another base ({wanted[:12]}) than {base} ({own[:12]})")
    known = students()
    if len(known.keys() | {name}) > slots.count:
        raise UserError(f"{STUDENTS} is full: an engine has slots for {slots.count} students; remove one")

    folder = STUDENTS / f"{name}-{files_fingerprint(pair.folder / file for file in PAIR_FILES)}"
    if not is_whole(folder):
        with whole_folder(folder) as draft:
            shutil.copytree(repository / pair.checkpoint, draft / ADAPTER)
            for file in PAIR_FILES:
                shutil.copyfile(pair.folder / file, draft / file)
    link = STUDENTS / f".{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(STUDENTS / name)


def check_adapter(checkpoint: Path, max_rank: int) -> None:
    """Raise UserError if a checkpoint can't be served beside a base."""
    if not is_adapter(checkpoint):
        raise UserError(f"{checkpoint} is a whole model, no adapter: train it with train.method lora")
    refuse_trained_modules([checkpoint], "vLLM")
    if (rank := adapter_rank(checkpoint)) > max_rank:
        raise UserError(f"{checkpoint} has rank {rank}, the engine takes up to {max_rank}: raise lora.r in params.yaml")


def remove(name: str) -> None:
    """Remove a student; raises UserError if there is none of that name."""
    known = students()
    if name not in known:
        raise UserError(f"no student is called {name!r}; there are: {', '.join(known) or 'none'}")
    (STUDENTS / name).unlink()
    for folder in STUDENTS.glob(f"{name}-*"):
        shutil.rmtree(folder)
