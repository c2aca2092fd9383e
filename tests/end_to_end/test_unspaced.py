"""Texts of one's own in a language without blanks, through every stage, the review and the service."""

import csv
import json

import pytest

from stages.parts.review.queue import rows_to_review
from stages.parts.run.params import load_params
from tests.conftest import make_clone
from tests.end_to_end.pipeline import STAGES, classify, edit, repro, serving
from tests.japanese import INTENTS, write_folder

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_japanese_texts_go_through_every_stage_and_the_service(tmp_path, monkeypatch):
    folder = make_clone(tmp_path / "repository")
    write_folder(folder / "data/mine")
    for path, value in {
        "raw.source": "folder",
        "raw.folder": "data/mine",
        "split.dev": 60,
        "split.optimizer_val": 40,
        "optimize.train_rows": 50,
        "optimize.candidate_programs": 1,
    }.items():
        edit(folder, *path.split("."), value=value)
    assert set(STAGES) <= set(repro(folder))
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert metrics["test"]["teacher"] > 0.9 and metrics["test"]["linear_teacher"] > 0.9
    assert metrics["test"]["tuned"]["plain"] > 0.7 > metrics["test"]["base"]["plain"]
    monkeypatch.chdir(folder)
    assert len(rows_to_review(load_params(), 20)) == 20
    rows = [json.loads(line) for line in (folder / "data/splits/test.jsonl").read_text().splitlines()]
    queries = ["カードが届かない", "😢😢", "card が来ない", *(row["text"] for row in rows)]
    with serving(folder) as url:
        answers = classify(url, queries)
    assert {answer["label"] for answer in answers} <= set(INTENTS)
    program = json.loads((folder / "models/program.sidecar.json").read_text())["program"]
    with (folder / "reports/predictions.csv").open(encoding="utf-8", newline="") as file:
        scored = {row["id"]: row[f"tuned_{program}"] for row in csv.DictReader(file)}
    same = [answer["label"] == scored[row["id"]] for row, answer in zip(rows, answers[-len(rows) :], strict=True)]
    assert sum(same) >= 0.98 * len(rows)  # another batch rounds differently
