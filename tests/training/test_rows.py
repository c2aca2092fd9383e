"""What is drawn anew each epoch: the query's missing tokens and the label; and what never changes."""

from pathlib import Path

from transformers import TrainerState

from stages.lora import add_shares
from stages.parts.training import trainer
from stages.parts.training.rows import Change, EachEpoch, EncodedRow, drawn_answers, query_dropout
from stages.parts.training.shared_prefix import IGNORED
from tests.training.test_trainer import PROGRAM, ROWS, STUDENT, TOKENIZER, build_model, plan

SYSTEM, CLOSING, ANSWER = [1, 2], [3, 4, 5], [6, 7]
QUERIES = [[number, *range(100, 140), number] for number in range(10, 60)]
LESSONS: list[EncodedRow] = [
    {"input_ids": SYSTEM + query + CLOSING + ANSWER, "labels": [IGNORED] * (len(SYSTEM + query + CLOSING)) + ANSWER}
    for query in QUERIES
]


def each_epoch(change: Change, seed: int = 0) -> EachEpoch:
    return EachEpoch(lambda rows: {"rows": list(rows)}, [change], seed)


def dropout(share: float, seed: int = 0) -> EachEpoch:
    return each_epoch(query_dropout(share, LESSONS), seed)


def seen(drops: EachEpoch, epoch: float, rows: list[EncodedRow] = LESSONS) -> list[EncodedRow]:
    drops.on_epoch_begin(None, TrainerState(epoch=epoch), None)
    found: list[EncodedRow] = drops(rows)["rows"]
    return found


def test_only_the_query_loses_tokens_and_keeps_their_order():
    dropped = 0
    for before, after in zip(LESSONS, seen(dropout(0.3), 0), strict=True):
        ids = after["input_ids"]
        assert (
            ids[:2] == SYSTEM
            and ids[-5:] == CLOSING + ANSWER
            and after["labels"] == [IGNORED] * (len(ids) - 2) + ANSWER
        )
        left = iter(before["input_ids"])
        assert all(token in left for token in ids)
        dropped += len(before["input_ids"]) - len(ids)
    assert 0.27 < dropped / sum(len(query) for query in QUERIES) < 0.33


def test_each_epoch_drops_others_and_a_resumed_one_the_same():
    whole = dropout(0.5)
    first, second = seen(whole, 0.0), seen(whole, 1.0)
    assert first != second
    assert seen(dropout(0.5), 1.0) == second  # another process that resumes at epoch 1
    assert seen(dropout(0.5), 1.0, LESSONS[::-1])[::-1] == second  # whatever order or device the rows come in
    assert seen(dropout(0.5, seed=1), 1.0) != second


def test_a_query_is_never_lost_whole():
    assert seen(dropout(0.999999), 0) == LESSONS


def test_the_training_follows_the_epochs(tmp_path: Path, monkeypatch):
    epochs = []

    class Noting(EachEpoch):
        def __call__(self, rows):
            epochs.append(self.epoch)
            return super().__call__(rows)

    monkeypatch.setattr(trainer, "EachEpoch", Noting)
    trainer.fine_tune(build_model(TOKENIZER, STUDENT), TOKENIZER, ROWS, plan(epochs=3, query_dropout=0.3), tmp_path)
    assert epochs == [0] * 5 + [1] * 5 + [2] * 5


def test_answers_are_drawn_in_proportion():
    answers = [(6, 7), (8,), (9, 9, 9)]
    rows = [{**row, "shares": [7_000, 0, 3_000]} for row in LESSONS]
    drawn = [row for epoch in range(20) for row in seen(each_epoch(drawn_answers(answers)), epoch, rows)]
    assert all(
        row["input_ids"] == before["input_ids"][:47] + row["labels"][47:]
        for row, before in zip(drawn, LESSONS * 20, strict=True)
    )
    shares = [sum(row["labels"][47:] == [*answer] for row in drawn) / len(drawn) for answer in answers]
    assert shares[1] == 0 and 0.65 < shares[0] < 0.75 and sum(shares) == 1


def test_answers_and_shares_come_from_the_teachers_distribution():
    names = PROGRAM.labels
    lessons = [
        {"label": names[number % 2], "probabilities": {names[0]: 0.25, names[1]: 0.7012, "unseen": 0.1}}
        for number in range(len(ROWS))
    ]
    rows = [dict(row) for row in ROWS]
    answers = add_shares(rows, lessons)
    assert [TOKENIZER.decode(answer[:1]) for answer in answers] == ["[[ ## label ## ]]"] * 2
    assert [TOKENIZER.decode(answer[1:2]) for answer in answers] == [f" {name}" for name in names]
    assert all(row["shares"] == [2500, 7012] for row in rows)
    lessons[0]["probabilities"] = {}
    add_shares(rows, lessons)
    assert rows[0]["shares"] == [10_000, 0], "without a distribution its own label"
    with_reasons = [{**row} for row in rows]
    with_reasons[2]["labels"] = [*with_reasons[2]["labels"], 5]
    assert add_shares(with_reasons, lessons) == (), "reasons are of one label"


def test_drawn_labels_train(tmp_path: Path):
    lessons = [
        {"label": PROGRAM.labels[number % 2], "probabilities": dict.fromkeys(PROGRAM.labels, 0.5)}
        for number in range(len(ROWS))
    ]
    rows = [dict(row) for row in ROWS]
    settings = plan(epochs=2, query_dropout=0.3, answers=add_shares(rows, lessons))
    log = trainer.fine_tune(build_model(TOKENIZER, STUDENT), TOKENIZER, rows, settings, tmp_path)
    assert len(log) == 10
