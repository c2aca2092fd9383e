"""Confident learning: which rows of a noisy labelling are likely wrong (Northcutt et al. 2021, arXiv 1911.00068)."""

from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedKFold, cross_val_predict

FOLDS = 4


def likely_errors(model: BaseEstimator, texts: Sequence[str], labels: Sequence[str], seed: int) -> np.ndarray:
    """A mask [N] of rows whose label an unseen-row classifier confidently contradicts ("prune by confident joint").

    Out-of-fold probabilities of `model`; a class's threshold is the mean probability that its own rows give it; a row
    is an error where another class passes its threshold, and is the most likely of those that do. A row whose label is
    the classifier's own choice is none (as in cleanlab's `_reduce_issues`). Rows of classes with fewer than FOLDS rows
    are kept.
    """
    given = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.bincount(given)
    frequent = counts[given] >= FOLDS
    errors = np.zeros(len(texts), bool)
    if frequent.sum() < 2 * FOLDS or len(set(given[frequent])) < 2:
        return errors
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    rows = np.asarray(texts, dtype=object)[frequent]
    kept, own = np.unique(given[frequent], return_inverse=True)
    probabilities = cross_val_predict(model, list(rows), own, cv=folds, method="predict_proba")
    thresholds = np.array([probabilities[own == k, k].mean() for k in range(len(kept))])
    passing = np.where(probabilities >= thresholds, probabilities, -1.0)
    contradicted = (passing.max(axis=1) >= 0) & (passing.argmax(axis=1) != own)
    errors[frequent] = contradicted & (probabilities.argmax(axis=1) != own)
    return errors
