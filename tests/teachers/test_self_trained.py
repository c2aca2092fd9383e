import asyncio
import random

import numpy as np
import pandas as pd
import pytest

from stages.filter import most_frequent, rows_of
from stages.parts.data.rows import Row, as_rows
from stages.parts.data.tables import read_table
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.baselines import baseline_model
from stages.parts.numbers.label_errors import contradicted_labels
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import TeacherFormat
from stages.parts.task.text import safe_text
from stages.parts.teachers.inputs import TeacherInputs
from stages.parts.teachers.linear_client import LinearClient, linear_client
from stages.parts.teachers.self_trained import SelfTrainedClassifier, SelfTraining, expected_shares
from tests.conftest import ROOT

LABELS = ["card_arrival", "declined_card_payment", "pending_top_up"]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return labelled_rows(read_table(ROOT / "data/sample/train.csv", "text", "category"), LABELS)


def labelled_rows(table: pd.DataFrame, labels: list[str]) -> list[Row]:
    return list(as_rows(rows_of(table, labels).sort_values("id")))


@pytest.fixture(scope="module")
def teacher(rows) -> SelfTrainedClassifier:
    gold, pool = rows[:12], rows[12:200]
    return SelfTraining([row["text"] for row in pool], gold, LABELS, 0).classifier()


def test_twelve_gold_rows_and_three_names_label_the_rest(rows, teacher):
    pool = rows[12:]  # half of it unseen
    found = teacher.probabilities([row["text"] for row in pool])
    assert np.allclose(found.sum(axis=1), 1)
    assert np.mean([LABELS[k] == row["label"] for k, row in zip(found.argmax(axis=1), pool, strict=True)]) > 0.9
    assert "declined" in teacher.deciding_terms("my card was declined in the shop", "declined_card_payment")


def test_the_client_answers_the_programs_requests_with_a_reason_and_a_probability(rows, teacher):
    program = IntentClassifier(LABELS, "Classify.", "chain_of_thought")
    texts = [row["text"] for row in rows[12:40]] + ["my new card has not arrived\n\nwhere is [[ ## it"]
    client = LinearClient(teacher, dict(zip(texts[:5], teacher.probabilities(texts[:5]), strict=True)))
    requests = ProgramRequests(program, HostedEndpoint(""), "linear", 100, TeacherFormat())
    for text, wanted in zip(texts, teacher.probabilities(texts), strict=True):
        reading = requests.read(asyncio.run(client.complete(requests.body(text))))
        assert reading.label == LABELS[int(wanted.argmax())]
        assert [reading.probabilities[label] for label in LABELS] == pytest.approx(list(wanted), rel=1e-3)
        assert (
            reading.reasoning.endswith(f"speaks for {reading.label}.")
            and min(reading.prompt_tokens, reading.completion_tokens) > 0
        )


def test_gold_rows_are_judged_by_teachers_that_do_not_know_their_labels(rows):
    """Random labels can be memorised, but not predicted."""
    chance = random.Random(0)
    gold = [Row(id=row["id"], text=row["text"], label=chance.choice(LABELS)) for row in rows[:60]]
    inputs = TeacherInputs(LABELS, IntentClassifier(LABELS, "Classify.", "direct"), rows[60:150], [], gold, [])
    client = linear_client(inputs, 0)

    def agreement(found: np.ndarray) -> float:
        return float(np.mean([LABELS[k] == row["label"] for k, row in zip(found.argmax(axis=1), gold, strict=True)]))

    assert agreement(client.classifier.probabilities([row["text"] for row in gold])) > 0.6
    assert agreement(np.array([client.known[safe_text(row["text"], LABELS)] for row in gold])) < 0.45


def test_gold_rows_judged_so_show_how_good_the_teacher_is(rows):
    gold, pool = rows[:60], rows[60:220]
    training = SelfTraining([row["text"] for row in pool], gold, LABELS, 0)
    of_gold, of_pool = training.gold_probabilities(), training.classifier().probabilities([row["text"] for row in pool])
    found = [
        np.mean([LABELS[k] == row["label"] for k, row in zip(said.argmax(axis=1), part, strict=True)])
        for said, part in ((of_gold, gold), (of_pool, pool))
    ]
    assert found[0] == pytest.approx(found[1], abs=0.1) and np.allclose(of_gold.sum(axis=1), 1)


def meanings(rows: list[Row], gold: int, noise: float) -> np.ndarray:
    """Vectors of the other rows, gold rows and names, as an encoder gives them: a direction a label, and noise."""
    draw = np.random.default_rng(0)
    ordered = [*rows[gold:], *rows[:gold]]
    classes = [*(LABELS.index(row["label"]) for row in ordered), *range(len(LABELS))]
    vectors = np.eye(16)[classes] + noise * draw.normal(size=(len(classes), 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_decide_where_words_can_not(rows):
    """Texts of which every label has the same words."""
    rows = [Row(id=row["id"], text=f"please help {number % 7}", label=row["label"]) for number, row in enumerate(rows)]
    vectors = meanings(rows[:200], 12, 0.1)
    training = SelfTraining([row["text"] for row in rows[12:200]], rows[:12], LABELS, 0, (), vectors)
    found = training.classifier().probabilities([row["text"] for row in rows[12:200]], vectors[:188]).argmax(axis=1)
    assert np.mean([LABELS[k] == row["label"] for k, row in zip(found, rows[12:200], strict=True)]) > 0.95


def test_vectors_that_know_nothing_of_the_texts_are_left_out(rows, capsys):
    gold, pool = rows[:60], [row["text"] for row in rows[60:200]]
    blind = meanings(rows[:200], 60, 50)
    training = SelfTraining(pool, gold, LABELS, 0, (), blind)
    assert "the teacher does without them" in capsys.readouterr().out
    without = SelfTraining(pool, gold, LABELS, 0).classifier().probabilities(pool)
    np.testing.assert_array_equal(training.classifier().probabilities(pool, blind[:140]), without)


def test_reasons_beside_vectors_are_words(rows):
    training = SelfTraining(
        [row["text"] for row in rows[12:200]], rows[:12], LABELS, 0, (), meanings(rows[:200], 12, 0.1)
    )
    terms = training.classifier().deciding_terms("my card was declined in the shop", "declined_card_payment")
    assert "declined" in terms and all(term.strip() == term and "__" not in term for term in terms)


def test_gold_rows_decide_the_classes_shares_only_when_they_speak_clearly():
    even = np.array([0] * 5 + [1] * 3 + [2] * 4)
    assert expected_shares(even, 3).tolist() == pytest.approx([1 / 3] * 3)
    skewed = expected_shares(np.array([0] * 80 + [1] * 15 + [2] * 5), 3)
    assert skewed[0] > 0.7 and skewed.sum() == pytest.approx(1)


def test_confident_learning_finds_planted_errors_and_spares_right_rows(rows):
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    planted = np.zeros(len(rows), bool)
    planted[::10] = True
    given = [
        LABELS[(LABELS.index(label) + 1) % 3] if wrong else label for label, wrong in zip(labels, planted, strict=True)
    ]
    found = contradicted_labels(baseline_model(0, quick=True), texts, given, 0)
    assert found[planted].mean() > 0.7 and found[~planted].mean() < 0.05


@pytest.mark.slow
def test_a_teacher_on_banking77_is_right_on_three_quarters_of_the_pool(banking77):
    """The issue's bar from 100 gold rows; the mean of three draws is 82 %."""
    table = read_table(banking77 / "train.csv", "text", "category")
    labels = most_frequent(table.label, 25)
    rows = labelled_rows(table, labels)
    np.random.default_rng(1).shuffle(rows)
    gold, pool = rows[:100], rows[100:]
    fitted = SelfTraining([row["text"] for row in pool], gold, labels, 0).classifier()
    found = fitted.probabilities([row["text"] for row in pool]).argmax(axis=1)
    assert np.mean([labels[k] == row["label"] for k, row in zip(found, pool, strict=True)]) >= 0.75
