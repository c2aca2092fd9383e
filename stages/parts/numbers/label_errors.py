"""Which of a teacher's labels are likely wrong: two ways to find them, one by the teacher's confidence, one without."""

from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

FOLDS = 4


def doubted_labels(
    confidence: Sequence[float | None], gold_confidence: Sequence[float | None], gold_right: Sequence[bool]
) -> np.ndarray:
    """Return a mask [N] of rows whose calibrated confidence is below a half; rows without a confidence are kept.

    The calibration is an isotonic regression on gold rows (Zadrozny and Elkan 2002). If confidence says nothing about
    who is right there, every row gets the share of right gold rows, and none is masked.
    """
    known = [(sure, right) for sure, right in zip(gold_confidence, gold_right, strict=True) if sure is not None]
    if not known:
        return np.zeros(len(confidence), bool)
    calibrated = IsotonicRegression(out_of_bounds="clip").fit(*zip(*known, strict=True))
    return np.array([sure is not None for sure in confidence]) & (
        calibrated.predict([sure or 0.0 for sure in confidence]) < 0.5
    )


def contradicted_labels(model: BaseEstimator, texts: Sequence[str], labels: Sequence[str], seed: int) -> np.ndarray:
    """Return a mask [N] of rows whose label a classifier that has not seen them confidently contradicts.

    Confident learning (Northcutt et al. 2021, arXiv 1911.00068), "prune by confident joint". The probabilities are
    those of `model` out of fold. A class's threshold is the mean probability that its own rows give it. A row is masked
    if another class passes its threshold, unless the given label is still the classifier's first choice (as in
    cleanlab's `_reduce_issues`). Rows of classes with fewer than FOLDS rows are kept.
    """
    given = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.bincount(given)
    frequent = counts[given] >= FOLDS
    errors = np.zeros(len(texts), bool)
    if frequent.sum() < 2 * FOLDS or len(set(given[frequent])) < 2:
        return errors
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    rows = np.asarray(texts, dtype=object)[frequent]
    # Classes are numbered again without the rare ones: predict_proba has a column only for classes it was fitted on.
    kept, own = np.unique(given[frequent], return_inverse=True)
    probabilities = cross_val_predict(model, list(rows), own, cv=folds, method="predict_proba")
    thresholds = np.array([probabilities[own == k, k].mean() for k in range(len(kept))])
    passing = np.where(probabilities >= thresholds, probabilities, -1.0)
    contradicted = (passing.max(axis=1) >= 0) & (passing.argmax(axis=1) != own)
    errors[frequent] = contradicted & (probabilities.argmax(axis=1) != own)
    return errors
