"""A change of labels.csv: what the teacher is queried for again, and what its other answers become."""

import json
from pathlib import Path

import pytest

from stages.parts.data.label_changes import ANSWERED
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_jsonl, write_json, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.traffic.relabel import relabel
from tests.data.test_folder import Folder

PARTS = {"pool": paths.TEACHER_LABELS, "test": paths.TEACHER_TEST, "gold": paths.TEACHER_GOLD}
WORDS = {"card": "where is my card", "loan": "raise my loan", "fee": "why this fee", "rate": "exchange rate of today"}


class Run:
    """A folder and a finished run on it, in which the teacher answers each text with the label of its words."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(folder)
        self.texts = {f"{words} {number}": name for number in range(75) for name, words in WORDS.items()}
        self.folder.texts("pool", list(self.texts))
        self.name_labels("card", "loan", "fee")

    def name_labels(self, *lines: str) -> None:
        """Write labels.csv: `name` or `name,was`."""
        rows = [",,".join(line.split(",")) if "," in line else f"{line},," for line in lines]
        (self.folder.path / "labels.csv").write_text("\n".join(["name,description,was", *rows]) + "\n")

    def gold(self, **of: str) -> None:
        """Write gold.csv; of a text with these words, the label it has."""
        self.folder.labelled(
            "gold", [(f"{WORDS[name]} gold {n}", label) for name, label in of.items() for n in range(6)]
        )

    def finish(self) -> None:
        """Stand in for the stages that follow: the teacher knows card, loan and fee, and takes a rate for a fee."""
        self.gold(card="card", loan="loan", fee="fee")
        rows = self.folder.split(dev=20, optimizer_val=20)
        write_json(paths.EMBEDDINGS_ENCODER, {"key": None})
        write_json(paths.TEACHER_REPORT, {"labels": ["card", "loan", "fee"]})
        for part, file in PARTS.items():
            write_jsonl(file, [self.answer(row) for row in rows[part]])

    def answer(self, row: dict) -> dict:
        label = self.texts.get(row["text"]) or row["label"]
        label = "fee" if label == "rate" else label
        probabilities = {label: 0.75, "loan" if label != "loan" else "fee": 0.2}
        answer = {"label": label, "reasoning": "why", "valid": True, "confidence": 0.75, "probabilities": probabilities}
        return {"id": row["id"], "text": row["text"], **answer}

    def kept(self) -> dict[str, dict]:
        """The answers that the rows of the next run come with, by text."""
        rows = self.folder.split(dev=20, optimizer_val=20)
        return {
            row["text"]: json.loads(row["teacher_answer"])
            for part in PARTS
            for row in rows[part]
            if "teacher_answer" in row
        }


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    found = Run(tmp_path / "mine")
    found.finish()
    return found


def test_a_rename_and_a_merge_query_nothing_and_rows_keep_their_labels(finished):
    finished.name_labels("card", "money,loan; Fee")
    assert relabel(load_params(), 0.0).again == 0
    kept = finished.kept()
    assert len(kept) == 300 + 18, "pool, test and gold: people's labels were not changed in gold.csv"
    assert kept["raise my loan 3"] == {"label": "money", "reasoning": "why", "probabilities": {"money": 0.95}}
    assert kept["where is my card 3"]["probabilities"] == {"card": 0.75, "money": 0.2}
    assert {row["label"] for row in read_jsonl(paths.GOLD)} == {"card", "money"}


def test_decisions_follow_a_rename_and_a_merge(finished):
    """Of hand-written files the order of columns, other lines and the last line without an end stay as they are."""
    first, second = (row["id"] for row in read_jsonl(paths.POOL)[:2])
    paths.DECISIONS.parent.mkdir(parents=True)
    paths.DECISIONS.write_text(f'label,id,note\nLoan,{first},"is, indeed"\ncard , {second},x\nFee?,{"0" * 16},')
    finished.name_labels("card", "money,loan; Fee")
    relabel(load_params(), 0.0)
    changed = f'label,id,note\nmoney,{first},"is, indeed"\ncard , {second},x\nmoney,{"0" * 16},\n'
    assert paths.DECISIONS.read_text() == changed
    relabel(load_params(), 0.0)
    assert paths.DECISIONS.read_text() == changed
    finished.folder.split(dev=20, optimizer_val=20)
    assert {row["id"]: row["label"] for row in read_jsonl(paths.REVIEWED)} == {first: "money", second: "card"}


def test_a_new_label_queries_the_rows_near_it_up_to_the_share(finished):
    finished.name_labels("card", "loan", "fee", "rate")
    finished.gold(card="card", loan="loan", fee="fee", rate="rate")
    found = relabel(load_params(), 0.26)
    assert (found.changes.added, found.rows, found.again) == (["rate"], 300, 78)
    kept = finished.kept()
    queried = [text for text in finished.texts if text not in kept]
    assert len(queried) == 78 and all(text in queried for text, name in finished.texts.items() if name == "rate")
    assert relabel(load_params(), 0.26) == found, "stages that came before the teacher change nothing"


def test_a_split_queries_the_rows_of_the_label_and_no_fewer(finished):
    finished.name_labels("card", "loan", "fee", "rate,fee")
    with pytest.raises(UserError, match=r"^150 of 300 pool rows have a label that was split.*SHARE to 0\.50"):
        relabel(load_params(), 0.2)
    assert not (finished.folder.path / ANSWERED).exists()
    assert relabel(load_params(), 0.5).again == 150
    assert {answer["label"] for answer in finished.kept().values()} == {"card", "loan"}


def test_kept_answers_for_other_labels_are_refused(finished):
    relabel(load_params(), 0.2)
    finished.name_labels("card", "loan", "fee", "rate")
    with pytest.raises(UserError, match=r"answered\.jsonl keeps answers for other labels.*make relabel"):
        finished.kept()


def test_a_former_name_that_two_labels_share_is_no_name_for_gold_rows(finished):
    finished.name_labels("card", "loan", "charge,fee", "rate,fee")
    with pytest.raises(UserError, match=r"'fee' is not in .*labels\.csv"):
        finished.kept()
