"""Raw, filter and split on a folder: what a user brings, what comes out, what stops the run."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages import filter as filter_stage
from stages import raw, split
from stages.parts.data.label_changes import read_answered
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl
from tests.conftest import ROOT, run

LABELS = ["card_arrival", "lost_card"]


def texts(kind: str, count: int) -> list[str]:
    return [f"{kind} text number {number}" for number in range(count)]


class Folder:
    """A user's folder, by default a sound one: 20 gold rows, 300 pool texts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.labelled("gold", [(text, LABELS[number % 2]) for number, text in enumerate(texts("gold", 20))])
        self.texts("pool", texts("pool", 300))

    def labelled(self, part: str, rows: list[tuple[str, str]]) -> None:
        pd.DataFrame(rows, columns=["text", "category"]).to_csv(self.path / f"{part}.csv", index=False)

    def texts(self, part: str, rows: list[str]) -> None:
        pd.DataFrame({"text": rows}).to_csv(self.path / f"{part}.csv", index=False)

    def split(self, **changes: object) -> dict[str, list[dict]]:
        """Run raw, filter and split on the folder."""
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["raw"] |= {"source": "folder", "folder": str(self.path)}
        params["split"] |= {"dev": 50, "optimizer_val": 50, **changes}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        for stage in (raw, filter_stage, split):
            stage.main()
        return {part: read_jsonl(paths.SPLITS / f"{part}.jsonl") for part in ("gold", "pool", "test", "sealed")}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path / "mine")


def test_without_a_test_file_part_of_gold_is_set_apart(folder):
    found = folder.split(test_share=0.3)
    assert [len(found[part]) for part in ("gold", "pool", "test", "sealed")] == [14, 300, 6, 0]
    assert {row["text"] for row in found["gold"] + found["test"]} == set(texts("gold", 20))
    assert sorted(row["label"] for row in found["test"]) == sorted(LABELS * 3)  # as many of each
    assert all(set(row) == {"id", "text"} for row in found["pool"])
    assert read_json(paths.SPLIT_REPORT)["test_from"] == "gold"


def test_a_split_does_not_depend_on_the_order_of_the_files(folder):
    first = folder.split()
    folder.texts("pool", texts("pool", 300)[::-1])
    assert folder.split() == first
    assert folder.split(test_share=0.5) == first
    assert folder.split(test_share=0.4)["test"] != first["test"]


def test_other_columns_come_through_and_clash_with_nothing(folder):
    pd.DataFrame({"text": texts("pool", 300), "id": range(300), "label": "mine"}).to_csv(
        folder.path / "pool.csv", index=False
    )
    pool = folder.split()["pool"]
    assert all(
        set(row) == {"id", "text", "raw.id", "raw.label"} and row["text"].endswith(f" {row['raw.id']}") for row in pool
    )


def test_what_is_labelled_already_leaves_the_pool_and_is_counted(folder):
    folder.labelled("test", [("test one", "lost_card"), ("test two", "card_arrival")])
    extra = ["gold text number 3", "test two", "TWO test!", "pool text number 1"]
    folder.texts("pool", [*texts("pool", 300), *extra])
    found = folder.split()
    assert len(found["pool"]) == 301 and not {row["text"] for row in found["pool"]} & {"gold text number 3", "test two"}
    assert len(found["gold"]) == 20 and len(found["test"]) == 2
    left_out = read_json(paths.FILTER_REPORT)["left_out"]
    assert left_out == {"two_labels": 0, "in_test": 0, "in_gold_or_test": 2, "repeated": 1}
    assert read_json(paths.SPLIT_REPORT)["near_duplicates"] == 1


def test_a_few_contradictions_are_left_out_and_many_stop_the_run(folder):
    rows = [(text, LABELS[number % 2]) for number, text in enumerate(texts("gold", 200))]
    folder.labelled(
        "test", [(f"test {number}", "lost_card") for number in range(99)] + [("gold text number 9", LABELS[1])]
    )
    folder.labelled("gold", [*rows, ("gold text number 4", LABELS[1])])
    found = folder.split()
    assert len(found["gold"]) == 198 and len(found["test"]) == 100
    assert read_json(paths.FILTER_REPORT)["left_out"] == {
        "two_labels": 2,
        "in_test": 1,
        "in_gold_or_test": 0,
        "repeated": 0,
    }
    folder.labelled("gold", [*rows, ("gold text number 4", LABELS[1]), ("gold text number 6", LABELS[1])])
    with pytest.raises(
        UserError, match=r"the gold file, rows 5, 7, 201, 202: has this text with another label.*4 of 202 rows"
    ):
        folder.split()
    folder.labelled("gold", rows)
    folder.labelled("test", [(text, LABELS[number % 2]) for number, text in enumerate(texts("gold", 3))])
    with pytest.raises(
        UserError, match=r"the gold file, rows 1, 2, 3: is a test text: drop it here or there \(3 of 200"
    ):
        folder.split()


def test_a_folder_that_cannot_be_used_says_why(folder):
    for change, says in (
        (lambda: (folder.path / "pool.jsonl").write_text(""), "holds pool.csv and pool.jsonl: keep one"),
        (lambda: (folder.path / "pool.csv").unlink(), "holds no pool.csv, pool.jsonl or pool.parquet: add one of them"),
        (lambda: (folder.path / "gold.csv").unlink(), "holds no gold.csv"),
        (
            lambda: folder.texts("pool", texts("pool", 150)),
            "150 pool rows are too few to hold out 100: lower split.dev (50)",
        ),
        (lambda: folder.labelled("gold", [("one", "lost_card")]), "names 1 label: there have to be two or more"),
        (
            lambda: folder.labelled("gold", [("1", "a"), ("2", "b")]) or folder.labelled("test", [("3", "c")]),
            "'c' is not in",
        ),
        (lambda: (folder.path / "labels.csv").write_text("name\ncard_arrival\n"), "category 'lost_card' is not in"),
    ):
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        change()
        with pytest.raises(UserError) as caught:
            folder.split()
        assert says in str(caught.value) and "\n" not in str(caught.value)
        for path in folder.path.iterdir():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"split\.test_share=0\.01 of 20 gold rows leaves 20 to learn from and 0 to score on"
    ):
        folder.split(test_share=0.01)
    folder.path = folder.path / "nowhere"
    with pytest.raises(UserError, match=r"is no folder: set raw\.folder to yours, or make one with `make new-data"):
        folder.split()


ALIKE = "differ only in spelling that a model's answers vary in"


@pytest.mark.parametrize(
    "twin",
    ["card-arrival", "{card_arrival}", "\u201ccard arrival\u201d", "(card arrival)", "card\\_arrival", "card_arrival,"],
)
def test_labels_that_answers_could_not_tell_apart_stop_the_run(folder, twin):
    """In gold, and in labels.csv: before a teacher is paid."""
    rows = [(text, [*LABELS, twin][number % 3]) for number, text in enumerate(texts("gold", 20))]
    folder.labelled("gold", rows)
    with pytest.raises(UserError, match=ALIKE):
        folder.split()
    pd.DataFrame({"name": [*LABELS, twin]}).to_csv(folder.path / "labels.csv", index=False)
    with pytest.raises(UserError, match=ALIKE):
        folder.split()


def test_labels_that_differ_in_signs_of_their_own_are_told_apart(folder):
    names = ["c", "c++", "c#", "card_arrival", "card_arrivals", "no_card_arrival"]
    folder.labelled("gold", [(text, names[number % 6]) for number, text in enumerate(texts("gold", 24))])
    folder.split()
    assert sorted(read_json(paths.LABELS)) == sorted(names)


def test_labels_csv_orders_the_labels_and_may_name_more_than_gold_has(folder):
    (folder.path / "labels.csv").write_text("name,description\nother,What else\nlost_card,\ncard_arrival,Where it is\n")
    folder.split()
    assert read_json(paths.LABELS) == ["other", "lost_card", "card_arrival"]
    assert read_json(paths.DESCRIPTIONS) == {"other": "What else", "card_arrival": "Where it is"}


def test_a_folder_of_a_benchmarks_rows_is_split_as_the_benchmark(folder, banking77):
    """All that follows then gives the same numbers: stages depend on these files alone."""

    def splits() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (paths.LABELS, paths.GOLD, paths.POOL, paths.TEST)}

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    files = {"source": "csv", "train": str(banking77 / "train.csv"), "test": str(banking77 / "test.csv")}
    Path("params.yaml").write_text(yaml.safe_dump(params | {"raw": params["raw"] | files}))
    for stage in (raw, filter_stage, split):
        stage.main()
    benchmark, rows = splits(), {part: read_jsonl(paths.SPLITS / f"{part}.jsonl") for part in ("gold", "pool", "test")}
    for part in ("gold", "test"):
        folder.labelled(part, [(row["text"], row["label"]) for row in rows[part]])
    folder.texts("pool", [row["text"] for row in rows["pool"]])
    pd.DataFrame({"name": read_json(paths.LABELS)}).to_csv(folder.path / "labels.csv", index=False)
    assert folder.split()["sealed"] == [] and splits() == benchmark


def test_make_new_data_makes_a_folder_that_the_pipeline_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["make", "-C", str(ROOT), "new-data", f"FOLDER={tmp_path / 'mine'}"]
    assert "raw.source=folder" in run(tmp_path, *command).stdout
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"pool.csv", "gold.csv", "labels.csv", "test.csv"}
    folder = Folder.__new__(Folder)
    folder.path = tmp_path / "mine"
    found = folder.split(dev=1, optimizer_val=1)
    assert [len(found[part]) for part in ("gold", "pool", "test")] == [5, 6, 4]
    assert found["pool"][0]["raw.id"].startswith("p") and "none_of_these" in json.loads(paths.LABELS.read_text())
    again = run(tmp_path, *command, check=False)
    assert again.returncode != 0 and "is there already" in again.stderr


def test_served_texts_begin_the_pool_with_the_labels_that_a_teacher_gave_them(folder):
    rows = [
        ("hello", "Card arrival"),
        ("pool text number 3", "lost_card"),
        ("new", ""),
        ("odd", "no such label"),
    ]
    folder.labelled("served", rows)
    found = {row["text"]: row.get("teacher_label") for row in folder.split()["pool"]}
    assert len(found) == 303  # one text was in the pool already
    assert {text: found[text] for text, _ in rows} == dict(
        zip([text for text, _ in rows], ["card_arrival", "lost_card", None, None], strict=True)
    )
    assert found["pool text number 4"] is None


def test_a_served_file_without_labels_is_refused(folder):
    folder.texts("served", ["hello"])
    with pytest.raises(UserError, match=r"served\.csv has no column 'category'"):
        folder.split()


@pytest.mark.parametrize("line", ["{}", "[]", "5", '{"text": "a"}', '{"text": ["a"], "label": 1}', "{"])
def test_kept_answers_that_somebody_edited_are_one_line(tmp_path, line):
    path = tmp_path / "answered.jsonl"
    path.write_text(f'{{"labels": {json.dumps(LABELS)}}}\n{line}\n')
    with pytest.raises(UserError, match=r"answered\.jsonl holds a line that is"):
        read_answered(path, LABELS)
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"answered\.jsonl"):
        read_answered(path, LABELS)
