"""Vectors of texts in scripts without blanks, of emoji, and of texts that have nothing in common."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from stages.parts.data.leaks import leaks
from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.numbers.baselines import baseline_model, fitted_baseline
from stages.parts.numbers.label_errors import contradicted_labels
from stages.parts.review.queue import diverse_order, doubts
from stages.parts.task.features import Nearest, topic_vectors, words
from stages.parts.task.labels import UNKNOWN
from stages.parts.task.terms import tokens
from stages.parts.teachers.inputs import chosen_rows
from stages.parts.teachers.self_trained import SelfTraining
from tests.japanese import INTENTS, japanese_rows

LABELS = list(INTENTS)


@pytest.fixture(autouse=True)
def no_vectors_of_a_run(tmp_path, monkeypatch):
    """Work where data/embeddings is not that of this repository's last run."""
    monkeypatch.chdir(tmp_path)


EMOJI = [one + other for one in "😀😢😡🏦💳💸" for other in "😀😢😡🏦💳💸"]
ODD_CORPORA = {
    "emoji": EMOJI,
    "nothing in common": ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"] * 4,
    "single characters": list("abcdefgh日月火水?!") * 3,
    "Chinese": [
        f"{start}{end}" for start in ("我想", "请问", "怎么") for end in ("换卡", "退款", "查余额", "转账", "改密码")
    ],
    "Thai": [f"{start}{end}" for start in ("อยาก", "ขอ") for end in ("เปลี่ยนบัตร", "คืนเงิน", "ดูยอดเงิน", "โอนเงิน")],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        Row(id=f"{number:016x}", text=text, label=label)
        for number, (text, label) in enumerate(japanese_rows().itertuples(index=False))
    ]


def test_words_are_scikit_learns_where_there_are_blanks_and_pairs_of_characters_where_there_are_none():
    assert tokens("my card, a 2nd time") == ["my", "card", "2nd", "time"]
    assert tokens("naïve café") == ["naïve", "café"]
    assert tokens("カードが来ない card 日") == ["カー", "ード", "ドが", "が来", "来な", "ない", "card", "日"]
    assert tokens("카드가 안 왔어요") == ["카드가", "왔어요"], "Korean has blanks"
    assert tokens("😢 ?") == ["😢", "?"] and tokens("  ") == []


def test_the_default_teacher_labels_japanese_texts(rows):
    gold, pool = rows[:80], rows[80:]
    training = SelfTraining([row["text"] for row in pool], gold, LABELS, 0)
    found = training.classifier().probabilities([row["text"] for row in pool]).argmax(axis=1)
    assert np.mean([LABELS[k] == row["label"] for k, row in zip(found, pool, strict=True)]) > 0.95
    assert training.classifier().deciding_terms("カードを無くしました", "カードの紛失")
    assert np.allclose(training.gold_probabilities().sum(axis=1), 1)


def test_the_baseline_label_errors_and_the_review_read_japanese_texts(rows):
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    baseline = fitted_baseline(list(zip(texts[:300], labels[:300], strict=True)), 0)
    assert baseline and baseline.score(texts[300:], labels[300:]) > 0.95
    planted = np.arange(len(rows)) % 10 == 0
    given = [
        LABELS[(LABELS.index(label) + 1) % len(LABELS)] if wrong else label
        for label, wrong in zip(labels, planted, strict=True)
    ]
    errors = contradicted_labels(baseline_model(0, quick=True), texts, given, 0)
    assert errors[planted].mean() > 0.6 and errors[~planted].mean() < 0.05
    labelled = [
        TeacherLabel(
            id=row["id"],
            text=row["text"],
            label=label,
            reasoning="",
            valid=label != UNKNOWN,
            confidence=None,
            probabilities={},
        )
        for row, label in zip(rows, given, strict=True)
    ]
    queue = diverse_order(doubts(labelled, [], 0), 40, 0)
    wrong = {row["id"] for row, is_wrong in zip(rows, planted, strict=True) if is_wrong}
    assert np.mean([doubt.row["id"] in wrong for doubt in queue]) > 0.4  # 0.1 by chance


def test_chosen_rows_cover_every_japanese_intent(rows):
    assert {row["label"] for row in chosen_rows(rows, 40, "cover", 0)} == set(LABELS)


def test_near_copies_of_japanese_texts_are_leaks(rows):
    texts = [row["text"] for row in rows]
    found = leaks({"train": texts[:300], "test": [*texts[300:400], f"{texts[0]}!", texts[1]]})
    assert found["train-test"]["exact"] >= 2 and found["train-test"]["near"] < 60


@pytest.mark.parametrize("name", ODD_CORPORA)
def test_no_corpus_is_without_terms(name):
    texts = ODD_CORPORA[name]
    assert words(2).fit(texts).transform(texts).shape[0] == len(texts)
    vectors = topic_vectors(texts, 0)
    assert np.isfinite(vectors).all() and (np.linalg.norm(vectors, axis=1) > 0).mean() > 0.9
    labels = ["even", "odd"]
    gold = [Row(id=str(number), text=text, label=labels[number % 2]) for number, text in enumerate(texts[:10])]
    assert np.isfinite(SelfTraining(texts[10:], gold, labels, 0).gold_probabilities()).all()
    assert fitted_baseline([(row["text"], row["label"]) for row in gold], 0)
    rows = [Row(id=str(number), text=text) for number, text in enumerate(texts)]
    assert len(chosen_rows(rows, 5, "cover", 0)) == 5


def test_nearest_demonstrations_are_found_in_japanese_and_emoji():
    demos = [{"query": text, "label": "a"} for text in ("カードが届かない", "返金してほしい", "😢😢")]
    assert Nearest(demos, 1)("カードがまだ届かない")[0].query == "カードが届かない"
    assert Nearest(demos, 1)("😢😢😢")[0].query == "😢😢"
