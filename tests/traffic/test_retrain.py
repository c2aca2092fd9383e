"""The rows that a retraining learns from, and those that it is judged by."""

import csv
from pathlib import Path

from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json, write_jsonl
from stages.parts.run.params import Params, load_params
from stages.parts.traffic.retrain import FOLDER, is_held_back, write_folder
from stages.parts.traffic.store import ServedRow, TrafficStore
from tests.data.test_folder import Folder

TEXTS = [f"served query {number}" for number in range(200)]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def filled_store(folder: Path) -> TrafficStore:
    store = TrafficStore(folder / paths.TRAFFIC, 1, 1_000)
    for number, text in enumerate(TEXTS):
        store.add(ServedRow(text, "card", 0.9, None, "student", "m", teacher_label="card" if number % 4 else None))
    return store


def from_source(params: Params, source: str, **raw: str) -> Params:
    return params.model_copy(update={"raw": params.raw.model_copy(update={"source": source, **raw})})


def test_of_a_folder_all_files_stay_and_served_texts_are_added_but_for_a_tenth(tmp_path, monkeypatch):
    params = load_params()
    monkeypatch.chdir(tmp_path)
    mine = Folder(tmp_path / "mine")
    mine.texts("pool", ["one", "two"])
    (mine.path / "served.csv").write_text("text,category\nimported,loan\n")
    with filled_store(tmp_path) as store:
        texts, labelled = write_folder(from_source(params, "folder", folder="mine"), store)
    found = {row["text"]: row["category"] for row in rows(FOLDER / "served.csv")}
    kept = [text for text in TEXTS if not is_held_back(text)]
    assert set(found) == {"imported", *kept} and found["imported"] == "loan" and 165 < len(kept) < 195
    assert (texts, labelled) == (len(found), sum(map(bool, found.values())))
    assert [row["text"] for row in rows(FOLDER / "pool.csv")] == ["one", "two"]
    assert len(rows(mine.path / "served.csv")) == 1, "the folder itself stays as it is"


def test_a_benchmarks_run_becomes_a_folder_with_the_same_gold_and_test_rows(tmp_path, monkeypatch):
    params = load_params()
    monkeypatch.chdir(tmp_path)
    write_json(paths.LABELS, ["card", "loan"])
    write_json(paths.DESCRIPTIONS, {"loan": "money, lent"})
    write_jsonl(paths.POOL, [{"id": "1", "text": 'a "pool" text'}])
    write_jsonl(paths.REVIEWED, [{"id": "2", "text": "decided by hand", "label": "loan"}])
    write_jsonl(paths.GOLD, [{"id": "3", "text": "gold, indeed", "label": "card"}])
    write_jsonl(paths.TEST, [{"id": "4", "text": "test", "label": "loan"}])
    with filled_store(tmp_path) as store:
        write_folder(from_source(params, "sample"), store)
        write_folder(from_source(params, "sample"), store)  # the next one replaces it
    assert [row["text"] for row in rows(FOLDER / "pool.csv")] == ['a "pool" text', "decided by hand"]
    assert rows(FOLDER / "labels.csv")[1] == {"name": "loan", "description": "money, lent"}
    for part, file in (("gold", paths.GOLD), ("test", paths.TEST)):
        wanted = [{"text": row["text"], "category": row["label"]} for row in read_jsonl(file)]
        assert rows(FOLDER / f"{part}.csv") == wanted
