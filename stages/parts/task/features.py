"""Texts as vectors: TF-IDF for the linear teacher and the baselines, LSA to compare texts and to choose among them."""

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

TOPICS = 100  # LSA dimensions
EXACT = 10**7  # rows times clusters up to which k-means reads all rows in each step, a matter of seconds


def words(longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True, min_df=2)


def characters(shortest: int, longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True, min_df=2)


def topic_vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """Return unit vectors [N, D] of texts by latent semantic analysis; D is TOPICS, or the number of terms if lower."""
    tfidf = words(2).fit_transform(texts)
    if min(tfidf.shape) <= TOPICS:
        return normalize(tfidf.toarray())
    return normalize(TruncatedSVD(TOPICS, random_state=seed).fit_transform(tfidf))


def cluster_middles(vectors: np.ndarray, count: int, seed: int, weights: Sequence[float] | None = None) -> list[int]:
    """Return the rows of [N, D] nearest to the middles of `count` k-means clusters, one each, in ascending order.

    `weights` [N] pull the middles towards rows. Equal rows share a cluster, so fewer rows may be returned.
    """
    count = min(count, len(np.unique(vectors, axis=0)))
    kmeans = KMeans if len(vectors) * count <= EXACT else MiniBatchKMeans
    clusters = kmeans(count, n_init=1, random_state=seed).fit(vectors, sample_weight=weights)
    distances = np.linalg.norm(vectors - clusters.cluster_centers_[clusters.labels_], axis=1)
    by_cluster = np.lexsort((distances, clusters.labels_))
    _, firsts = np.unique(clusters.labels_[by_cluster], return_index=True)
    return sorted(by_cluster[firsts].tolist())
