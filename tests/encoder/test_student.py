"""The encoder student: the head learns distributions, and the file that serves answers as the head did."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from transformers import BertConfig

from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.export import export_encoder
from stages.parts.encoder.familiarity import known_rows
from stages.parts.encoder.head import fit_head
from stages.parts.encoder.student import read_student, write_student
from stages.parts.run.errors import UserError
from tests.conftest import ROOT
from tests.encoder.test_encoder import SIZES, sentence_model

LABELS = ["card_arrival", "refund", "exchange_rate"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clusters(rows: int, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [N, 8] around one direction a class, all of them far to one side, and their classes."""
    draw = np.random.default_rng(0)
    classes = draw.integers(0, len(LABELS), rows)
    return unit(np.eye(8)[classes] + 3 * np.eye(8)[7] + noise * draw.normal(size=(rows, 8))), classes


def test_the_head_learns_labels():
    vectors, classes = clusters(600)
    head = fit_head(vectors[:400], np.eye(3)[classes[:400]], vectors.mean(axis=0))
    assert (head.probabilities(vectors[400:]).argmax(axis=1) == classes[400:]).mean() > 0.9


def test_the_head_learns_a_distribution_as_it_is():
    vectors, classes = clusters(3_000, noise=0.1)
    doubt = 0.7 * np.eye(3)[classes] + 0.3 * np.eye(3)[(classes + 1) % 3]
    found = fit_head(vectors, doubt, vectors.mean(axis=0)).probabilities(vectors)
    assert found[np.arange(len(classes)), classes].mean() == pytest.approx(0.7, abs=0.05)
    assert np.allclose(found.sum(axis=1), 1)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """An exported encoder of random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    source = sentence_model(folder / "source", BertConfig(**SIZES))
    export_encoder(source, folder, "int8", None)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_encoder):
    """A tiny encoder with a random head and known texts, the head, and the known vectors."""
    draw = np.random.default_rng(0)
    size = Encoder(tiny_encoder).size
    vectors = Encoder(tiny_encoder).vectors(["where is my card", "money back", "rate", "hello"])
    head = fit_head(vectors, draw.dirichlet(np.ones(3), 4), vectors.mean(axis=0))
    assert head.weights.shape == (size, 3)
    folder = tmp_path_factory.mktemp("student")
    known = unit(draw.normal(size=(50, size)).astype(np.float32) + vectors[0])
    write_student(tiny_encoder, head, known, LABELS, folder)
    return folder, head, known


def test_the_file_answers_as_the_head_on_the_encoders_vectors(student, tiny_encoder):
    folder, head, known = student
    texts = ["Where is my card?", "", "\u00a0money\tback  ", "x" * 5_000]
    loaded = read_student(folder)
    vectors = Encoder(tiny_encoder).vectors(texts)
    expected, found = head.probabilities(vectors), loaded.read(texts)
    assert np.allclose(found.probabilities, expected, atol=1e-5)
    assert np.allclose(found.familiarity, np.sort(vectors @ known.T, axis=1)[:, -10:].mean(axis=1), atol=4e-3)
    assert loaded.predict(texts) == [LABELS[number] for number in expected.argmax(axis=1)]
    assert loaded.read([]).probabilities.shape == (0, 3) and loaded.read([]).familiarity.shape == (0,)


def test_few_known_texts_are_enough_and_a_graph_without_any_is_of_another_version(student, tiny_encoder, tmp_path):
    _, head, known = student
    write_student(tiny_encoder, head, known[:2], LABELS, tmp_path / "few")
    [vector] = Encoder(tiny_encoder).vectors(["cash"])
    [found] = read_student(tmp_path / "few").read(["cash"]).familiarity
    assert found == pytest.approx((known[:2] @ vector).mean(), abs=4e-3)
    (tmp_path / "few/encoder.onnx").write_bytes((tiny_encoder / "encoder.onnx").read_bytes())
    with pytest.raises(UserError, match="another version"):
        read_student(tmp_path / "few")


def test_a_graph_that_wants_a_mask_is_of_another_version(student, tmp_path):
    folder, *_ = student
    shutil.copytree(folder, tmp_path / "masked")
    model = onnx.load(folder / "encoder.onnx")
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "attention_mask"
    onnx.save(model, tmp_path / "masked/encoder.onnx")
    with pytest.raises(UserError, match="another version"):
        read_student(tmp_path / "masked")


def test_gold_rows_show_that_other_texts_are_in_the_pool():
    """Texts around five directions that no gold row is of are learned under three labels, with less confidence."""
    draw = np.random.default_rng(0)

    def around(directions: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        classes = draw.integers(0, len(directions), rows)
        return unit(directions[classes] + 0.2 * draw.normal(size=(rows, 32))), classes

    (inside, classes), (outside, _) = around(np.eye(32)[:3], 400), around(np.eye(32)[3:8], 100)
    gold, gold_classes = around(np.eye(32)[:3], 60)
    sure, unsure = 0.8 * np.eye(3)[classes] + 0.2 / 3, 0.4 * np.eye(3)[draw.integers(0, 3, 100)] + 0.6 / 3
    assert list(known_rows(inside, sure, gold, gold_classes, 0)) == list(range(400))
    rows = known_rows(np.vstack([inside, outside]), np.vstack([sure, unsure]), gold, gold_classes, 0)
    assert len(rows) == pytest.approx(250, abs=3) and (rows < 400).mean() > 0.99
    # A label without a gold row keeps its half, too.
    rest = gold_classes != 2
    rows = known_rows(np.vstack([inside, outside]), np.vstack([sure, unsure]), gold[rest], gold_classes[rest], 0)
    assert (classes[rows[rows < 400]] == 2).sum() > 50


def test_serving_needs_neither_torch_nor_dspy(student):
    folder, *_ = student
    script = f"""
import sys
for heavy in "torch transformers dspy sklearn scipy pandas vllm aiohttp huggingface_hub onnx".split():
    sys.modules[heavy] = None  # importing it fails
from pathlib import Path
from stages.parts.encoder.student import read_student
from stages.parts.numbers.calibration import StudentCalibration, load_calibration
print(read_student(Path({str(folder)!r})).predict(["hello"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-500:]
