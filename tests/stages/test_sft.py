"""Stage sft: the sealed labels stay sealed, unless an experiment asks for them."""

import json
import random
from pathlib import Path

import pytest
import yaml

from stages import sft
from stages.parts.data.rows import row_id
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json, write_jsonl
from tests.conftest import ROOT

LABELS = ["card_arrival", "lost_card"]
TEXTS = [f"query {number} about {LABELS[number % 2].replace('_', ' ')}" for number in range(40)]


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """What stage sft reads; the teacher is wrong on all rows but the first."""
    monkeypatch.chdir(tmp_path)
    true = [{"id": row_id(text), "text": text, "label": LABELS[number % 2]} for number, text in enumerate(TEXTS)]
    wrong = {"reasoning": "so", "valid": True, "confidence": 0.5, "probabilities": {}}
    teacher = [{**row, "label": LABELS[(number > 0) ^ (number % 2)], **wrong} for number, row in enumerate(true)]
    write_json(paths.LABELS, LABELS)
    write_jsonl(paths.SEALED, [{key: row[key] for key in ("id", "label")} for row in true])
    write_jsonl(paths.TEACHER_LABELS, teacher)
    write_jsonl(paths.GOLD, [])
    write_jsonl(paths.REVIEWED, [])
    write_jsonl(paths.TEST, [{"id": "t", "text": "something else", "label": LABELS[0]}])
    configure()
    return tmp_path


def configure(style: str | None = None, targets: str | None = None, **settings: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sft"] |= {"prune": False, **settings}
    params["program"]["style"] = style
    params["train"]["targets"] = targets
    params["split"] |= {"dev": 4, "optimizer_val": 4}
    params["optimize"]["train_rows"] = 4
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_a_teacher_that_doubts_its_wrong_labels_is_believed_where_labels_are_learned_as_they_are(repository):
    chance = random.Random(0)
    rows = [{"id": row_id(text), "text": text, "label": LABELS[number % 2]} for number, text in enumerate(TEXTS)]
    doubted = {row["id"] for row in chance.sample(rows, 10)}
    other = {"reasoning": "so", "valid": True, "probabilities": {}}
    write_jsonl(
        paths.TEACHER_LABELS, [{**row, **other, "confidence": 0.6 if row["id"] in doubted else 0.9} for row in rows]
    )
    gold = [{"id": f"gold {number}", "text": f"gold text {number}", "label": LABELS[0]} for number in range(20)]
    write_jsonl(paths.GOLD, gold)

    def learned(targets: str, right_when_sure: bool = True) -> set[str]:
        """What is trained on, where 10 of 20 gold rows have a low confidence and a wrong label (or there is no telling
        them apart).
        """
        sure = [0.9 if number % 2 == right_when_sure else 0.65 for number in range(20)]
        said = [LABELS[0] if number % 2 else LABELS[1] for number in range(20)]
        write_jsonl(
            paths.TEACHER_GOLD,
            [{**row, "label": label, "confidence": c} for row, label, c in zip(gold, said, sure, strict=True)],
        )
        configure(prune=True, targets=targets)
        sft.main()
        return {row["id"] for row in read_jsonl(paths.SFT_TRAIN)}

    everything = learned("drawn")
    assert len(everything) == 32 and everything & doubted
    assert learned("hard") == everything - doubted
    assert learned("hard", right_when_sure=False) == everything


def rightly_labelled() -> list[bool]:
    """Of every row written, whether its label is the true one."""
    held_out = [
        (row["text"], row["label"]) for path in (paths.SFT_DEV, paths.OPTIMIZER_VAL) for row in read_jsonl(path)
    ]
    trained = [(json.dumps(row["messages"][1]), row["messages"][2]["content"]) for row in read_jsonl(paths.SFT_TRAIN)]
    return [
        next(label for label in LABELS if label in answer).replace("_", " ") in text
        for text, answer in [*held_out, *trained]
    ]


def test_without_the_switch_nothing_needs_the_sealed_labels(repository):
    paths.SEALED.unlink()
    sft.main()
    right = rightly_labelled()
    assert len(right) == 40 and sum(right) == 1
    assert read_json(paths.SFT_REPORT)["labels"] == "teacher"


def test_the_switch_opens_them_and_says_so(repository, capsys):
    configure(labels=True, prune=True)  # what `-S sft.labels=true` writes
    sft.main()
    right = rightly_labelled()
    assert len(right) == 40 and all(right)
    assert read_json(paths.SFT_REPORT)["labels"] == "true" and "EXPERIMENT" in capsys.readouterr().out


def test_the_teachers_errors_can_be_left_out(repository, capsys):
    right = [
        {**row, "label": next(label for label in LABELS if label.replace("_", " ") in row["text"])}
        for row in read_jsonl(paths.TEACHER_LABELS)
    ]
    write_jsonl(paths.TEACHER_LABELS, [*right[:30], *read_jsonl(paths.TEACHER_LABELS)[30:]])
    configure(labels="checked")
    sft.main()
    assert rightly_labelled() == [True] * 30 and "EXPERIMENT" in capsys.readouterr().out


def test_true_labels_come_without_reasoning(repository):
    configure(style="chain_of_thought", labels="true")
    with pytest.raises(UserError, match=r"program\.style direct"):
        sft.main()


def test_copies_of_a_scored_row_are_not_learned(repository):
    """A test row that a customer wrote before, in other case and punctuation."""
    write_jsonl(
        paths.TEST,
        [
            {"id": f"t{number}", "text": f"{text.upper()}!", "label": LABELS[0]}
            for number, text in enumerate(TEXTS[:30])
        ],
    )
    sft.main()
    learned = {json.dumps(row["messages"][1]) for row in read_jsonl(paths.SFT_TRAIN)}
    assert learned and not any(f"query {number} about" in text for number in range(30) for text in learned)
    found = read_json(paths.LEAKS)
    assert read_json(paths.SFT_REPORT)["copies"] + len(learned) == 32
    assert found["sft-test"]["exact"] == 0 and found["dev-test"]["exact"] + found["val-test"]["exact"] > 0


def test_reviewed_rows_are_learned_as_people_labelled_them_and_never_pruned(repository):
    reviewed = [
        {"id": f"r{number}", "text": f"{TEXTS[1]} reviewed {number}", "label": LABELS[0]} for number in range(3)
    ]
    write_jsonl(paths.REVIEWED, reviewed)
    configure(prune=True)
    sft.main()
    learned = {row["id"]: row for row in read_jsonl(paths.SFT_TRAIN)}
    for row in reviewed:
        assert LABELS[0] in learned[row["id"]]["messages"][-1]["content"] and learned[row["id"]]["probabilities"] == {
            LABELS[0]: 1.0
        }
    assert read_json(paths.SFT_REPORT)["reviewed"] == 3
    configure(style="chain_of_thought")
    sft.main()
    assert not {row["id"] for row in reviewed} & {row["id"] for row in read_jsonl(paths.SFT_TRAIN)}, (
        "nobody wrote down reasons"
    )
