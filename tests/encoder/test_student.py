"""The encoder student: the head learns distributions, and the file that serves answers as the head did."""

import subprocess
import sys

import numpy as np
import pytest
from transformers import BertConfig

from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.export import export_encoder
from stages.parts.encoder.student import fit_head, read_student, write_student
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
    """A tiny encoder with a random head, and the head."""
    draw = np.random.default_rng(0)
    size = Encoder(tiny_encoder).size
    vectors = Encoder(tiny_encoder).vectors(["where is my card", "money back", "rate", "hello"])
    head = fit_head(vectors, draw.dirichlet(np.ones(3), 4), vectors.mean(axis=0))
    assert head.weights.shape == (size, 3)
    folder = tmp_path_factory.mktemp("student")
    write_student(tiny_encoder, head, LABELS, folder)
    return folder, head


def test_the_file_answers_as_the_head_on_the_encoders_vectors(student, tiny_encoder):
    folder, head = student
    texts = ["Where is my card?", "", "\u00a0money\tback  ", "x" * 5_000]
    loaded = read_student(folder)
    expected = head.probabilities(Encoder(tiny_encoder).vectors(texts))
    assert np.allclose(loaded.probabilities(texts), expected, atol=1e-5)
    assert loaded.predict(texts) == [LABELS[number] for number in expected.argmax(axis=1)]
    vector, probabilities = loaded.outputs(texts[0])
    assert np.allclose(probabilities, expected[0], atol=1e-5) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    assert loaded.probabilities([]).shape == (0, 3)


def test_serving_needs_neither_torch_nor_dspy(student):
    folder, _ = student
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
