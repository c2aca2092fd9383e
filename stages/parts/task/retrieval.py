"""Demonstrations chosen for each query: the nearest ones."""

from collections.abc import Sequence
from typing import Any

import dspy
import numpy as np
from dspy.predict.knn import KNN
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.preprocessing import normalize


class Nearest:
    """The `count` demonstrations whose queries are likest to a query, the likest first (dspy.KNN, as in DSPy's KNNFewShot).

    Likeness is the cosine of TF-IDF vectors of words and characters, fitted on the demonstrations alone: what a program is saved with says
    which are shown, whatever else is in the data. A query is never shown itself, so that answers to gold rows, which are demonstrations as
    well, say how good the prompt is on others.
    """

    def __init__(self, demos: Sequence[Any], count: int) -> None:
        self.count = count
        known = {demo["query"]: dspy.Example(demo).with_inputs("query") for demo in demos}
        terms = (
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        )
        vectorizer = make_union(*terms).fit(list(known))

        def vectors(texts: list[str]) -> np.ndarray:
            return normalize(vectorizer.transform([text.removeprefix("query: ") for text in texts])).toarray()

        self.knn = KNN(count + 1, list(known.values()), dspy.Embedder(vectors, caching=False))

    def __call__(self, query: str) -> list[Any]:
        return [demo for demo in self.knn(query=query) if demo.query != query][: self.count]
