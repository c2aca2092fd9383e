"""Texts as vectors: TF-IDF, which the linear teacher and the linear baselines see, and LSA, by which texts are
compared.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

TOPICS = 100  # LSA dimensions


def words(longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True, min_df=2)


def characters(shortest: int, longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True, min_df=2)


def topic_vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """Unit vectors [N, D] of texts by latent semantic analysis; D is TOPICS, or the number of terms where those are
    fewer.
    """
    tfidf = words(2).fit_transform(texts)
    if min(tfidf.shape) <= TOPICS:
        return normalize(tfidf.toarray())
    return normalize(TruncatedSVD(TOPICS, random_state=seed).fit_transform(tfidf))
