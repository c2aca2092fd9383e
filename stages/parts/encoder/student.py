"""The encoder student: an encoder, its head and the texts it knows, in one ONNX graph.

The graph's outputs are a text's unit vector, the probabilities of its labels, and its familiarity.

Serving needs onnxruntime, tokenizers and numpy: nothing here may import torch, DSPy or scikit-learn at the top.
"""

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import numpy as np

from stages.parts.encoder.encoder import DESCRIPTION, MODEL, TOKENIZER, Encoder
from stages.parts.encoder.head import Head
from stages.parts.run.errors import UserError
from stages.parts.task.readings import TextReadings
from stages.parts.task.student_file import read_student_file, write_student_file

NEIGHBOURS = 10  # known texts whose mean cosine is a text's familiarity
INPUTS, OUTPUTS = ["input_ids"], ["vectors", "probabilities", "familiarity"]


def write_student(encoder: Path, head: Head, known: np.ndarray, labels: Sequence[str], folder: Path) -> None:
    """Write a folder that answers by itself: an exported encoder's graph with the head behind it, tokenizer, labels.

    `known` [M, D] are the unit vectors that familiarity is measured by, kept with 7 bits a number: in half precision
    their products are a fifth of a query's time, since onnxruntime computes them in single precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(encoder / MODEL)
    graph = model.graph
    scales = np.abs(known).max(axis=1, keepdims=True).astype(np.float32) / 63
    constants = {
        "head.mean": head.mean,
        "head.weights": head.weights,
        "head.bias": head.bias,
        "known.int8": np.rint(known / scales).T.astype(np.int8),
        "known.scales": scales[:, 0],
        "known.nearest": np.array([min(NEIGHBOURS, len(known))]),
        "known.axis": np.array([1]),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Sub", ["vectors", "head.mean"], ["head.moved"]),
            helper.make_node("LpNormalization", ["head.moved"], ["head.centred"], axis=1, p=2),
            helper.make_node("MatMul", ["head.centred", "head.weights"], ["head.products"]),
            helper.make_node("Add", ["head.products", "head.bias"], ["head.logits"]),
            helper.make_node("Softmax", ["head.logits"], ["probabilities"], axis=1),
            helper.make_node("DynamicQuantizeLinear", ["vectors"], ["known.query", "known.scale", "known.zero"]),
            helper.make_node("MatMulInteger", ["known.query", "known.int8", "known.zero"], ["known.products"]),
            helper.make_node("Cast", ["known.products"], ["known.unscaled"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["known.scale", "known.scales"], ["known.both"]),
            helper.make_node("Mul", ["known.unscaled", "known.both"], ["known.cosines"]),
            helper.make_node("TopK", ["known.cosines", "known.nearest"], ["known.highest", "known.places"], sorted=0),
            helper.make_node("ReduceMean", ["known.highest", "known.axis"], ["familiarity"], keepdims=0),
        ]
    )
    graph.output.extend(
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(labels)]),
            helper.make_tensor_value_info("familiarity", TensorProto.FLOAT, [1]),
        ]
    )
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
    """A folder of `write_student`, loaded: texts in, the probabilities of `labels` and familiarity out.

    Raises UserError if another version wrote the folder.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.encoder = Encoder(folder)
        self.labels = list(labels)
        session = self.encoder.session
        names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs())]
        if names != [INPUTS, OUTPUTS]:
            raise UserError(f"{folder / MODEL} is of another version of this project: run `dvc repro encoder`")

    def read(self, texts: Sequence[str]) -> TextReadings:
        """Return the labels' probabilities [N, K] and the texts' familiarity [N], float32."""
        found = self.encoder.run(texts)
        if not found:
            return TextReadings(np.empty((0, len(self.labels)), np.float32), np.empty(0, np.float32))
        return TextReadings(*(np.concatenate(each) for each in list(zip(*found, strict=True))[1:]))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable labels."""
        return [self.labels[number] for number in self.read(texts).probabilities.argmax(axis=1)]
