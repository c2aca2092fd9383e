"""Texts as vectors: TF-IDF for the linear teacher and the baselines, LSA to compare texts and to choose among them."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import dspy
import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import normalize

from stages.parts.task.terms import lower_case, tokens
from stages.parts.task.text import normalized

TOPICS = 100  # LSA dimensions
EXACT = 10**7  # rows times clusters up to which k-means reads all rows in each step, a matter of seconds


class TermVectorizer(TfidfVectorizer):
    """TF-IDF that counts every term if no term is in `min_df` texts, instead of raising ValueError."""

    min_df: int

    def fit_transform(self, raw_documents: Iterable[str], y: object = None) -> Any:
        texts = list(raw_documents)
        try:
            return super().fit_transform(texts)
        except ValueError:
            min_df, self.min_df = self.min_df, 1
            try:
                return super().fit_transform(texts)
            finally:
                self.min_df = min_df

    def fit(self, raw_documents: Iterable[str], y: object = None) -> "TermVectorizer":
        self.fit_transform(raw_documents)
        return self


def words(longest: int) -> TfidfVectorizer:
    """Return TF-IDF of words and of runs of up to `longest` words."""
    return TermVectorizer(
        preprocessor=lower_case,
        tokenizer=tokens,
        token_pattern=None,
        ngram_range=(1, longest),
        sublinear_tf=True,
        min_df=2,
    )


def characters(shortest: int, longest: int, min_df: int = 2) -> TfidfVectorizer:
    """Return TF-IDF of characters within words, which also works where words can't be told apart."""
    return TermVectorizer(
        preprocessor=lower_case,
        analyzer="char_wb",
        ngram_range=(shortest, longest),
        sublinear_tf=True,
        min_df=min_df,
    )


def topic_vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """Return unit vectors [N, D] of texts by latent semantic analysis; D is TOPICS, or the number of terms if lower."""
    tfidf = words(2).fit_transform(texts)
    if min(tfidf.shape) <= TOPICS:
        return normalize(tfidf.toarray())
    return normalize(TruncatedSVD(TOPICS, random_state=seed).fit_transform(tfidf))


def cluster_middles(vectors: np.ndarray, count: int, seed: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """Return the row numbers, ascending, of the rows [N, D] nearest to the middles of `count` clusters (k-means).

    `weights` [N] pull the middles towards rows. A row may be nearest to two middles, and equal rows share a cluster:
    then there are fewer than `count`.
    """
    count = min(count, len(np.unique(vectors, axis=0)))
    kmeans = KMeans if len(vectors) * count <= EXACT else MiniBatchKMeans
    clusters = kmeans(count, n_init=1, random_state=seed).fit(vectors, sample_weight=weights)
    return np.unique(pairwise_distances_argmin(clusters.cluster_centers_, vectors))


class Nearest:
    """Choose the `count` demonstrations whose queries are most similar to a query, the most similar first.

    Like DSPy's KNNFewShot, without its requests for each demonstration of each query and without dspy.KNN's dense
    vectors (8.8 ms of processor time a prompt with those, 1.9 ms with sparse ones).

    Similarity is the cosine of TF-IDF vectors of characters, fitted on the demonstrations alone: what a program is
    saved with determines which are shown, whatever else is in the data. A query never sees itself, so that accuracy on
    gold rows, which are demonstrations as well, measures the prompt on other rows.
    """

    def __init__(self, demos: Sequence[Any], count: int) -> None:
        self.count = count
        known = {normalized(demo["query"]): dspy.Example(demo) for demo in demos}
        self.demos = list(known.values())
        self.vectorizer = characters(2, 5, min_df=1)
        self.terms = self.vectorizer.fit_transform(known).T.tocsr()

    def __call__(self, query: str) -> list[Any]:
        similarity = (self.vectorizer.transform([query]) @ self.terms).toarray()[0]
        nearest = (self.demos[place] for place in np.argsort(-similarity, kind="stable"))
        return list(islice((demo for demo in nearest if normalized(demo.query) != normalized(query)), self.count))
