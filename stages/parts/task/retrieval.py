"""Demonstrations chosen for each query: the nearest ones."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import dspy
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer


class Nearest:
    """The `count` demonstrations whose queries are likest to a query, the likest first: as DSPy's KNNFewShot, but for
    its requests for each demonstration of each query, and for dspy.KNN's dense vectors (8.8 ms of processor time a
    prompt with those, 1.9 ms so).

    Likeness is the cosine of TF-IDF vectors of characters, fitted on the demonstrations alone: what a program is saved
    with says which are shown, whatever else is in the data. A query is never shown itself, so that answers to gold
    rows, which are demonstrations as well, say how good the prompt is on others.
    """

    def __init__(self, demos: Sequence[Any], count: int) -> None:
        self.count = count
        known = {demo["query"]: dspy.Example(demo) for demo in demos}
        self.demos = list(known.values())
        self.vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self.terms = self.vectorizer.fit_transform(known).T.tocsr()

    def __call__(self, query: str) -> list[Any]:
        likeness = (self.vectorizer.transform([query]) @ self.terms).toarray()[0]
        nearest = (self.demos[place] for place in np.argsort(-likeness, kind="stable"))
        return list(islice((demo for demo in nearest if demo.query != query), self.count))
