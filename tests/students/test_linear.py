"""The linear student: arrays that answer as scikit-learn's pipeline does, without it."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.students.linear import WEIGHTS, read_linear, write_linear
from stages.parts.task.features import characters, words
from stages.parts.task.student_file import read_student_file
from stages.parts.task.terms import character_terms, lower_case, word_terms
from tests.conftest import ROOT
from tests.japanese import INTENTS

ODD = [
    "",
    " ",
    "💳💳",
    "a",
    "x",
    "\u00a0Where\u00adis my  card",
    "カードが届きません",
    "İstanbul ﬁve",
    "x" * 5000,
    *INTENTS["返金"],
]


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(ROOT / "data/sample/train.csv").sample(1500, random_state=0)


@pytest.mark.parametrize("text", [*ODD, "Where is my card? It hasn't come, and I'm in 2 minds."])
def test_the_terms_are_those_of_the_vectorizers(text):
    lowered = lower_case(text)
    for terms, vectorizer in ((word_terms, words(2)), (character_terms, characters(2, 5))):
        assert sorted(terms(lowered)) == sorted(vectorizer.build_analyzer()(text))


@pytest.mark.slow
def test_it_answers_every_test_row_as_scikit_learn_does(table, tmp_path):
    fitted = fitted_baseline(list(zip(table.text, table.category, strict=True)), 0)
    labels = [*sorted(set(table.category), reverse=True), "a_label_without_rows"]
    write_linear(fitted, labels, tmp_path / "linear")
    student = read_linear(tmp_path / "linear")
    texts = [*pd.read_csv(ROOT / "data/sample/test.csv").text, *ODD]
    assert student.predict(texts) == list(fitted.predict(texts))
    found = student.read(texts).probabilities
    columns = [labels.index(label) for label in fitted[1].classes_]
    assert np.allclose(found[:, columns], fitted.predict_proba(texts), atol=1e-5)
    assert (found[:, -1] == 0).all() and student.read([]).probabilities.shape == (0, len(labels))
    first = read_student_file(tmp_path / "linear")
    write_linear(fitted, labels, tmp_path / "again")
    assert read_student_file(tmp_path / "again") == first, "equal weights have equal names"


def test_two_labels_are_no_special_case(tmp_path):
    rows = [("where is my card", "card"), ("my card is late", "card"), ("money back", "refund"), ("my money", "refund")]
    fitted = fitted_baseline(rows, 0)
    write_linear(fitted, ["refund", "card"], tmp_path)
    found = read_linear(tmp_path).read([text for text, _ in rows]).probabilities
    assert np.allclose(found[:, ::-1], fitted.predict_proba([text for text, _ in rows]), atol=1e-5)


@pytest.fixture
def small(tmp_path):
    write_linear(fitted_baseline([("my card", "card"), ("my money", "refund")] * 2, 0), ["card", "refund"], tmp_path)
    return tmp_path


def test_serving_needs_neither_scikit_learn_nor_torch(small):
    script = f"""
import sys
for heavy in "torch transformers dspy sklearn scipy pandas vllm aiohttp huggingface_hub joblib".split():
    sys.modules[heavy] = None  # importing it fails
from pathlib import Path
from stages.parts.students.linear import read_linear
print(read_linear(Path({str(small)!r})).predict(["my card"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "card" in done.stdout, done.stderr[-500:]


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_pickle_among_the_weights_is_not_run(small, capsys):
    np.savez(small / WEIGHTS, idf=np.array([Trap()], object), weights=np.zeros((1, 2)), bias=np.zeros(2))
    with pytest.raises(ValueError, match="pickle"):
        read_linear(small)
    assert "unpickled" not in capsys.readouterr().out
