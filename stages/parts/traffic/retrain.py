"""A new student from the pool and the served rows, as a DVC experiment beside the workspace (`make retrain`).

A tenth of the served texts, chosen by their hashes, is never learned from: on them both students are compared.
"""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dvc.api

from stages.parts.data.rows import row_id
from stages.parts.numbers.choice import IN_PROCESS, ServedChoice, load_choice
from stages.parts.numbers.seeds import experiments
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import iter_jsonl, read_json, whole_folder, write_csv
from stages.parts.run.params import Params
from stages.parts.students.local import LocalClassifier
from stages.parts.task.student_file import STUDENT
from stages.parts.traffic.rows import LabelledText, add_served, stored_rows
from stages.parts.traffic.shadow_rows import ShadowAnswer, ShadowedRow
from stages.parts.traffic.store import TrafficStore

FOLDER = paths.TRAFFIC.parent / "retrain"  # of the experiment: raw.folder
RETRAINED = paths.ENCODER.parent / "retrained"  # NAME: what an experiment's students are
HELD_BACK = 10  # one text of so many


@dataclass(frozen=True)
class Retrained:
    """A finished experiment: its name, its choice of a student, and that one's folder (None: the decoder)."""

    name: str
    choice: ServedChoice
    folder: Path | None

    @property
    def held_out(self) -> Path:
        """The new student's predictions of rows that it has not learned."""
        return RETRAINED / self.name / (f"{self.folder.name}_held_out.jsonl" if self.folder else paths.HELD_OUT.name)


def is_held_back(text: str) -> bool:
    """Whether a served text is for comparisons alone: the same in every retraining."""
    return int(row_id(text), 16) % HELD_BACK == 0


def learnable(rows: Iterable[LabelledText]) -> Iterable[LabelledText]:
    """Return the served rows that a student may learn from."""
    return (row for row in rows if not is_held_back(row[0]))


def write_folder(params: Params, store: TrafficStore) -> tuple[int, int]:
    """Write FOLDER, the rows of the last run with the served ones before its pool; return the count of served texts and
    of those that the teacher has labelled. Raises UserError if the last run's rows are missing.
    """
    raw, source = params.raw, Path(params.raw.folder)
    with whole_folder(FOLDER) as draft:
        if raw.source == "folder":
            shutil.copytree(source, draft)
        else:
            rows_of_run(draft, raw.text_column, raw.label_column)
        return add_served(draft, learnable(stored_rows(store)), raw.text_column, raw.label_column)


def rows_of_run(folder: Path, text_column: str, label_column: str) -> None:
    """Write the last run's rows as a source folder. Decisions from `make review` still apply, because ids are kept."""
    folder.mkdir()
    descriptions = read_json(paths.DESCRIPTIONS)
    labels = [(label, descriptions.get(label, "")) for label in read_json(paths.LABELS)]
    write_csv(folder / "labels.csv", ["name", "description"], labels)
    pool = ((row["text"],) for file in (paths.POOL, paths.REVIEWED) for row in iter_jsonl(file))
    write_csv(folder / "pool.csv", [text_column], pool)
    for part, file in (("gold", paths.GOLD), ("test", paths.TEST)):
        labelled = ((row["text"], row["label"]) for row in iter_jsonl(file))
        write_csv(folder / f"{part}.csv", [text_column, label_column], labelled)


def retrain(params: Params, store: TrafficStore, settings: Sequence[str]) -> Retrained:
    """Run the pipeline on pool and served rows; `settings` go to `dvc exp run`. Workspace and service stay as they are.

    Raises UserError if the run fails.
    """
    texts, labelled = write_folder(params, store)
    name = f"retrain-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    print(f"{name}: {texts} served texts before the pool, {labelled} of them with the teacher's label", flush=True)
    on_folder = ["-S", "raw.source=folder", "-S", f"raw.folder={FOLDER}"]
    line = ["dvc", "exp", "run", "--temp", "--copy-paths", str(FOLDER), "--name", name, *on_folder, *settings]
    if subprocess.run(line, check=False).returncode:
        raise UserError("the run failed (see above): finished stages are kept, `make retrain` goes on there")
    fetch_students(RETRAINED / name, experiments([name])[name])
    choice = load_choice(RETRAINED / name / paths.SERVED.name)
    return Retrained(name, choice, None if choice.serve == "decoder" else RETRAINED / name / choice.serve)


def fetch_students(to: Path, revision: str) -> None:
    """Copy the in-process students of a run, and what they are judged by, out of DVC's cache."""
    files = dvc.api.DVCFileSystem(rev=revision)
    with whole_folder(to) as draft:
        draft.mkdir()
        for path in (*(path for found in IN_PROCESS.values() for path in found), paths.HELD_OUT, paths.SERVED):
            files.get(str(path), str(draft / path.name), recursive=True)
        for folder, *others in IN_PROCESS.values():
            if read_json(draft / folder.name / STUDENT) is None:  # the run had none of this kind
                shutil.rmtree(draft / folder.name)
                for file in others:
                    (draft / file.name).unlink()


def replayed(store: TrafficStore, student: LocalClassifier, new: LocalClassifier) -> list[ShadowedRow]:
    """Return what two students predict of the stored texts that retraining leaves out, each text once."""
    rows = {row.text: row.teacher_label for row in store.rows() if is_held_back(row.text)}
    texts = list(rows)
    both = zip(student.classify(texts), new.classify(texts), strict=True)
    return [
        ShadowedRow(ShadowAnswer.of(own), ShadowAnswer.of(other), rows[text])
        for text, (own, other) in zip(texts, both, strict=True)
    ]
