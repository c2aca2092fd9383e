"""The linear student: the baseline of words and characters (numbers/baselines.py) as arrays.

Serving needs numpy alone: nothing here may import scikit-learn, DSPy or torch at the top. Nothing is pickled: a folder
from elsewhere runs no code.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.parts.run.files import read_json, write_json
from stages.parts.task.readings import TextReadings
from stages.parts.task.student_file import read_student_file, write_student_file
from stages.parts.task.terms import character_terms, lower_case, word_terms

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TERMS, WEIGHTS = "terms.json", "weights.npz"
COUNTED = (word_terms, character_terms)  # the baseline's two vectorizers, in their order


def write_linear(fitted: "Pipeline", labels: Sequence[str], folder: Path) -> None:
    """Write a fitted baseline: the terms of each vectorizer, `idf` [T], `weights` [T, K] and `bias` [K], float32.

    A label that no row had gets the probability 0.
    """
    union, regression = fitted[0], fitted[1]
    vectorizers = [vectorizer for _, vectorizer in union.transformer_list]
    coefficients, intercept = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row of coefficients: those of the second label
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.append(0 * intercept, intercept)
    places = [list(labels).index(label) for label in regression.classes_]
    weights = np.zeros((coefficients.shape[1], len(labels)), np.float32)
    bias = np.full(len(labels), -np.inf, np.float32)
    weights[:, places], bias[places] = coefficients.T, intercept
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TERMS, [sorted(each.vocabulary_, key=each.vocabulary_.get) for each in vectorizers])
    idf = np.concatenate([each.idf_ for each in vectorizers]).astype(np.float32)
    np.savez(folder / WEIGHTS, idf=idf, weights=weights, bias=bias)
    write_student_file(folder, "linear", labels)


def read_linear(folder: Path) -> "LinearStudent | None":
    """Return the student in a folder; None if its rows could not be fitted."""
    found = read_student_file(folder)
    return LinearStudent(folder, found.labels) if found else None


class LinearStudent:
    """A folder of `write_linear`, loaded: texts in, the probabilities of `labels` out."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            self.idf, self.weights, self.bias = (arrays[name] for name in ("idf", "weights", "bias"))
        self.places: list[dict[str, int]] = []
        first = 0
        for terms in read_json(folder / TERMS):
            self.places.append({term: place for place, term in enumerate(terms, first)})
            first += len(terms)

    def logits(self, text: str) -> np.ndarray:
        """Return a text's unscaled log-probabilities [K]."""
        lowered, total = lower_case(text), self.bias.astype(float)
        for count, places in zip(COUNTED, self.places, strict=True):
            counts = Counter(place for term in count(lowered) if (place := places.get(term)) is not None)
            if not counts:
                continue
            known = np.fromiter(counts, np.int64)
            values = (1 + np.log(np.fromiter(counts.values(), float))) * self.idf[known]
            total += values / np.linalg.norm(values) @ self.weights[known]
        return total

    def read(self, texts: Sequence[str]) -> TextReadings:
        """Return the labels' probabilities [N, K]."""
        found = np.array([self.logits(text) for text in texts]).reshape(-1, len(self.labels))
        powers = np.exp(found - found.max(axis=1, keepdims=True))
        return TextReadings(powers / powers.sum(axis=1, keepdims=True))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable labels."""
        return [self.labels[number] for number in self.read(texts).probabilities.argmax(axis=1)]
