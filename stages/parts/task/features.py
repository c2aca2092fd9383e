"""Texts as TF-IDF vectors: what the linear teacher and the linear baselines see."""

from sklearn.feature_extraction.text import TfidfVectorizer


def words(longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True, min_df=2)


def characters(shortest: int, longest: int) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True, min_df=2)
