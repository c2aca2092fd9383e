"""`make retrain` on a small pipeline: four labels, a small student, two epochs."""

import csv
import json
import subprocess
from pathlib import Path

import pytest

from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.students.local import load_local
from stages.parts.traffic.retrain import FOLDER, is_held_back
from stages.parts.traffic.store import ServedRow, TrafficStore
from tests.conftest import commit_all, run
from tests.end_to_end.pipeline import STAGES, borrow_environment, ran, repro
from tests.end_to_end.test_reruns import small_clone

pytestmark = pytest.mark.engine


def retrain(folder: Path) -> str:
    done = subprocess.run(["make", "retrain"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_served_rows_make_a_new_student_beside_the_old_one(tmp_path):
    folder = small_clone(tmp_path / "repository")
    borrow_environment(folder)
    assert repro(folder) == STAGES
    commit_all(folder, "built")
    labels, before = read_json(folder / paths.LABELS), len(read_jsonl(folder / paths.POOL))
    texts = [f"please look at my {word} again, number {number}" for number in range(40) for word in ("card", "top-up")]
    with TrafficStore(folder / paths.TRAFFIC, 30, 10**6) as store:
        for number, text in enumerate(texts):
            teacher = labels[number % 4] if number % 2 else None
            store.add(ServedRow(text, labels[0], 0.5, "unsure", "student", "old", teacher))
    own = (folder / paths.ENCODER / "student.json").read_text()

    said = retrain(folder)
    assert ran(said) == STAGES
    served = rows(folder / FOLDER / "served.csv")
    assert [row["text"] for row in served] == [text for text in texts if not is_held_back(text)]
    assert len(rows(folder / FOLDER / "pool.csv")) == before
    held_back = sum(map(is_held_back, texts))
    assert (held_back > 2 and "equal labels 1" in said) or f"of {held_back}" in said
    assert "gold: right" in said and "with the teacher's label" in said and "make promote STUDENT=" in said
    assert (folder / paths.ENCODER / "student.json").read_text() == own, "the workspace stays as it is"
    assert run(folder, "git", "status", "--porcelain").stdout == ""
    [new] = (folder / "models/retrained").iterdir()
    for name in ("encoder", "linear"):
        student = load_local(new / name)
        assert set(student.labels) == set(labels)
    assert json.loads((new / "encoder/student.json").read_text())["name"] != json.loads(own)["name"], "other rows"

    assert ran(retrain(folder)) == [], "the same rows: every stage is restored"
    [_, again] = sorted((folder / "models/retrained").iterdir())
    assert (again / "encoder/student.json").read_text() == (new / "encoder/student.json").read_text()
    promoted = subprocess.run(
        ["make", "promote", f"STUDENT={again.relative_to(folder)}/encoder"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert promoted.returncode == 0, promoted.stderr
