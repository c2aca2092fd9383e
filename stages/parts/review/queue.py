"""Which rows of the pool a person's look is worth most.

Doubtful rows teach most, but the most doubtful ones are alike: a person would label the same confusion twenty times. So
the queue comes in rounds, each of which takes BEFORE times as many rows as it needs, the most doubtful ones, clusters
them, weighted by their doubt, and asks for the row nearest to the middle of each cluster (diverse mini-batch active
learning, Zhdanov 2019, arXiv 1901.05954).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from stages.parts.data.rows import TeacherLabel
from stages.parts.numbers.baselines import baseline_model
from stages.parts.task.features import topic_vectors

BEFORE = 10  # doubtful rows for each that is asked for
ROUND = 100  # rows
FOLDS = 4
CONFUSED = 0.5  # doubt that a label brings which gold shows the teacher to give wrongly


@dataclass(frozen=True)
class Doubt:
    """How doubtful a teacher's label is, in [0, 1], and what a linear model that learned from its other labels says
    instead.
    """

    row: TeacherLabel
    doubt: float
    linear: str


def doubts(rows: Sequence[TeacherLabel], confused: Sequence[str], seed: int) -> list[Doubt]:
    """The doubt about each row: the mean of what the teacher leaves of certainty, where it says, and what an
    out-of-fold linear model does.

    `confused` are labels that gold shows the teacher to give for another one, beyond chance.
    """
    given = np.unique([row["label"] for row in rows], return_inverse=True)
    frequent = np.bincount(given[1])[given[1]] >= FOLDS
    texts = [row["text"] for row, is_frequent in zip(rows, frequent, strict=True) if is_frequent]
    names, own = np.unique(given[1][frequent], return_inverse=True)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities = cross_val_predict(baseline_model(seed, quick=True), texts, own, cv=folds, method="predict_proba")
    of_frequent = zip(
        probabilities[np.arange(len(own)), own], given[0][names[probabilities.argmax(axis=1)]], strict=True
    )

    found = []
    for row, is_frequent in zip(rows, frequent, strict=True):
        sure, linear = next(of_frequent) if is_frequent else (0.0, row["label"])
        left = [1 - float(sure)] + ([] if row["confidence"] is None else [1 - row["confidence"]])
        doubt = float(np.mean(left)) if row["valid"] else 1.0
        found.append(Doubt(row, max(doubt, CONFUSED if row["label"] in confused else 0.0), str(linear)))
    return found


def in_order(found: Sequence[Doubt], count: int, seed: int) -> list[Doubt]:
    """The first `count` rows to look at, in rounds of ROUND; within a round the most doubtful first."""
    left = sorted(found, key=lambda one: -one.doubt)
    vectors = topic_vectors([one.row["text"] for one in left], seed)
    queue: list[Doubt] = []
    waiting = list(range(len(left)))
    while len(queue) < count and waiting:
        size = min(ROUND, count - len(queue))
        doubtful = waiting[: size * BEFORE]
        chosen = (
            doubtful
            if len(doubtful) <= size
            else middles(vectors[doubtful], [left[place].doubt for place in doubtful], size, seed)
        )
        places = sorted(doubtful[number] if len(doubtful) > size else number for number in chosen)
        queue += [left[place] for place in places]
        taken = set(places)
        waiting = [place for place in waiting if place not in taken]
    return queue


def middles(vectors: np.ndarray, weights: Sequence[float], count: int, seed: int) -> list[int]:
    """The rows of [N, D] nearest to the middles of `count` clusters, one each; fewer where rows are alike."""
    clusters = KMeans(count, n_init=1, random_state=seed).fit(vectors, sample_weight=weights)
    distances = clusters.transform(vectors)
    return sorted(
        {
            int(np.where(clusters.labels_ == cluster, distances[:, cluster], np.inf).argmin())
            for cluster in set(clusters.labels_)
        }
    )
