"""Token dropout on the query: what is dropped, what never is, and when it is drawn anew."""

from pathlib import Path

from transformers import TrainerState

from stages.parts.training import trainer
from stages.parts.training.query_dropout import QueryDropout, around_query
from stages.parts.training.rows import Row
from stages.parts.training.shared_prefix import IGNORED
from tests.training.test_trainer import ROWS, STUDENT, TOKENIZER, build_model, recipe

SYSTEM, CLOSING, ANSWER = [1, 2], [3, 4, 5], [6, 7]
QUERIES = [[number, *range(100, 140), number] for number in range(10, 60)]
LESSONS: list[Row] = [
    {"input_ids": SYSTEM + query + CLOSING + ANSWER, "labels": [IGNORED] * (len(SYSTEM + query + CLOSING)) + ANSWER} for query in QUERIES
]


def dropout(share: float, seed: int = 0) -> QueryDropout:
    return QueryDropout(lambda rows: {"rows": list(rows)}, share, seed, *around_query(LESSONS))


def seen(drops: QueryDropout, epoch: float, rows: list[Row] = LESSONS) -> list[Row]:
    drops.on_epoch_begin(None, TrainerState(epoch=epoch), None)
    found: list[Row] = drops(rows)["rows"]
    return found


def test_only_the_query_loses_tokens_and_keeps_their_order():
    assert around_query(LESSONS) == (2, 3)
    dropped = 0
    for before, after in zip(LESSONS, seen(dropout(0.3), 0), strict=True):
        ids = after["input_ids"]
        assert ids[:2] == SYSTEM and ids[-5:] == CLOSING + ANSWER and after["labels"] == [IGNORED] * (len(ids) - 2) + ANSWER
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

    class Noting(QueryDropout):
        def __call__(self, rows):
            epochs.append(self.epoch)
            return super().__call__(rows)

    monkeypatch.setattr(trainer, "QueryDropout", Noting)
    trainer.fine_tune(build_model(TOKENIZER, STUDENT), TOKENIZER, ROWS, recipe(epochs=3, query_dropout=0.3), tmp_path)
    assert epochs == [0] * 5 + [1] * 5 + [2] * 5
