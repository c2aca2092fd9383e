"""Which texts a student knows: what is unlike all of them probably fits no label.

A text's familiarity is the mean cosine of its NEIGHBOURS nearest known texts. Nothing is fitted to out-of-scope texts.
"""

import numpy as np
from scipy.stats import ks_2samp, rankdata

from stages.parts.encoder.student import NEIGHBOURS

NUMBERS = 2_000_000  # of all known vectors together: 2 MB in a student's file, 0.1 ms a query
STRANGE_P = 0.1  # of the test for a pool that holds other texts than the gold rows


def known_rows(
    vectors: np.ndarray, targets: np.ndarray, gold: np.ndarray, gold_classes: np.ndarray, seed: int
) -> np.ndarray:
    """Return which learned rows [M] count as known, of unit vectors [N, D] with label probabilities `targets` [N, K].

    All of them, unless gold rows [G, D] with class numbers [G] show that the pool also holds texts on other subjects.
    Then each label keeps the half of its rows that ranks highest by the teacher's confidence and by similarity to the
    label's gold rows.
    """
    rows = purer_half(vectors, targets, gold, gold_classes) if strange(vectors, gold) else np.arange(len(vectors))
    most = max(NEIGHBOURS, NUMBERS // vectors.shape[1])
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def strange(vectors: np.ndarray, gold: np.ndarray) -> bool:
    """Return whether rows [N, D] lie farther from gold rows [G, D] than these do from each other (Kolmogorov-Smirnov,
    one-sided).
    """
    if len(gold) < 2:
        return False
    among_gold = gold @ gold.T
    np.fill_diagonal(among_gold, -1)
    nearest, wanted = (vectors @ gold.T).max(axis=1), among_gold.max(axis=1)
    return bool(ks_2samp(nearest, wanted, alternative="greater").pvalue < STRANGE_P)


def purer_half(vectors: np.ndarray, targets: np.ndarray, gold: np.ndarray, gold_classes: np.ndarray) -> np.ndarray:
    """Return the rows [M] of each label with the highest sum of ranks in the teacher's confidence and in the cosine of
    the nearest gold row of that label.
    """
    classes, kept = targets.argmax(axis=1), []
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        nearest = (vectors[rows] @ gold[gold_classes == number].T).max(axis=1, initial=-1)
        ranks = rankdata(targets[rows].max(axis=1)) + rankdata(nearest)
        kept.append(rows[np.argsort(-ranks, kind="stable")[: (len(rows) + 1) // 2]])
    return np.concatenate(kept)
