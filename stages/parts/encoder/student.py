"""The encoder student: a softmax regression on an encoder's vectors, in one ONNX graph with the encoder.

The head learns what the decoder student learns: the SFT rows, each with the teacher's distribution over the labels if
there is one. Vectors are centred and brought back to unit length first, since texts of one domain lie close together.

Serving needs onnxruntime, tokenizers and numpy: nothing here may import torch, DSPy or scikit-learn at the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np

from stages.parts.encoder.encoder import DESCRIPTION, MODEL, TOKENIZER, Encoder
from stages.parts.task.student_file import read_student_file, write_student_file

PENALTY = 0.1  # of the squared weights; from 0.05 to 0.2 (C of 5 to 20) accuracy is flat, at 1 it is 7 points lower
STEPS = 300  # of L-BFGS at the most


@dataclass(frozen=True)
class Head:
    """A softmax regression on centred unit vectors: `mean` [D], `weights` [D, K], `bias` [K]."""

    mean: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return the labels' probabilities [N, K] for unit vectors [N, D]."""
        logits = self.centred(vectors) @ self.weights + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def centred(self, vectors: np.ndarray) -> np.ndarray:
        moved = vectors - self.mean
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)


def fit_head(vectors: np.ndarray, targets: np.ndarray, mean: np.ndarray) -> Head:
    """Return the head fitted on unit vectors [N, D] whose labels have the probabilities `targets` [N, K].

    `mean` [D] is that of the domain's texts, with or without labels.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    (rows, size), labels = vectors.shape, targets.shape[1]
    empty = Head(mean, np.zeros((size, labels)), np.zeros(labels))
    design = np.hstack([empty.centred(vectors), np.ones((rows, 1))]).astype(np.float32)
    wanted = targets.astype(np.float32)
    penalty = np.full((size + 1, 1), PENALTY, np.float32)
    penalty[-1] = 0  # the bias is free

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        free = flat.reshape(size + 1, labels).astype(np.float32)
        logits = design @ free
        value = -(wanted * log_softmax(logits, axis=1)).sum() + (penalty * free**2).sum() / 2
        return float(value), (design.T @ (softmax(logits, axis=1) - wanted) + penalty * free).ravel().astype(float)

    start = np.zeros((size + 1) * labels)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x.reshape(size + 1, labels)
    return Head(mean.astype(np.float32), found[:-1].astype(np.float32), found[-1].astype(np.float32))


def write_student(encoder: Path, head: Head, labels: Sequence[str], folder: Path) -> None:
    """Write a folder that answers by itself: an exported encoder's graph with the head behind it, tokenizer, labels."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(encoder / MODEL)
    graph = model.graph
    constants = {"head.mean": head.mean, "head.weights": head.weights, "head.bias": head.bias}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Sub", ["vectors", "head.mean"], ["head.moved"]),
            helper.make_node("LpNormalization", ["head.moved"], ["head.centred"], axis=1, p=2),
            helper.make_node("MatMul", ["head.centred", "head.weights"], ["head.products"]),
            helper.make_node("Add", ["head.products", "head.bias"], ["head.logits"]),
            helper.make_node("Softmax", ["head.logits"], ["probabilities"], axis=1),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["texts", len(labels)]))
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / MODEL)
    for name in (TOKENIZER, DESCRIPTION):
        copyfile(encoder / name, folder / name)
    write_student_file(folder, "encoder", labels)


def read_student(folder: Path) -> "EncoderStudent | None":
    """Return the student in a folder; None if the run has no encoder."""
    found = read_student_file(folder)
    return EncoderStudent(folder, found.labels) if found else None


class EncoderStudent:
    """A folder of `write_student`, loaded: texts in, the probabilities of `labels` out."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.encoder = Encoder(folder)
        self.labels = list(labels)

    def outputs(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a text's unit vector [D] and its labels' probabilities [K]."""
        vectors, probabilities = self.encoder.run(self.encoder.tokens([text])[0])
        return vectors[0], probabilities[0]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the labels' probabilities [N, K], float32."""
        runs = self.encoder.workers.map(self.encoder.run, self.encoder.tokens(texts))
        found = [probabilities[0] for _, probabilities in runs]
        return np.stack(found) if found else np.empty((0, len(self.labels)), np.float32)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable labels."""
        return [self.labels[number] for number in self.probabilities(texts).argmax(axis=1)]
