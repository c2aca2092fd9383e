"""Which rows of the pool are worth most to review.

Doubtful rows teach most, but the most doubtful ones are alike: a person would label the same confusion twenty times. So
the queue comes in rounds. A round takes the most doubtful rows, CANDIDATES times as many as it needs, clusters them,
weighted by their doubt, and keeps the row nearest to the centre of each cluster (diverse mini-batch active learning,
Zhdanov 2019, arXiv 1901.05954).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from stages.parts.data.decisions import read_decisions
from stages.parts.data.rows import TeacherLabel, extra_columns
from stages.parts.encoder.vectors import stored_vectors
from stages.parts.numbers.baselines import baseline_model
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.params import Params
from stages.parts.task.features import cluster_middles, topic_vectors

CANDIDATES = 10  # doubtful rows for each row of a round
ROUND = 100  # rows
FOLDS = 4
CONFUSED = 0.5  # least doubt about a label that the teacher gives wrongly on gold rows, beyond chance


@dataclass(frozen=True)
class Doubt:
    """How doubtful a teacher's label is, in [0, 1], and the label that a linear model predicts from the other rows."""

    row: TeacherLabel
    doubt: float
    linear: str


def rows_to_review(params: Params, count: int) -> list[Doubt]:
    """Return the first `count` rows without a decision, with the user's other columns; raise UserError for none."""
    decided = read_decisions(paths.DECISIONS, read_json(paths.LABELS))
    extra = {row["id"]: extra_columns(row) for row in read_jsonl(paths.POOL)}
    rows = [row | extra.get(row["id"], {}) for row in read_jsonl(paths.TEACHER_LABELS) if row["id"] not in decided]
    if not rows:
        raise UserError(f"{paths.TEACHER_LABELS} has no row without a decision: there is nothing to review")
    confused = [pair["predicted"] for pair in read_json(paths.TEACHER_REPORT)["confused"] or ()]
    print(f"ordering {len(rows)} rows, the ones worth most first", flush=True)
    return diverse_order(doubts(rows, confused, params.seed), count, params.seed)


def doubts(rows: Sequence[TeacherLabel], confused: Sequence[str], seed: int) -> list[Doubt]:
    """Return the doubt about each row: the mean of 1 - the teacher's confidence, if it reports one, and 1 - the
    probability that an out-of-fold linear model gives the teacher's label.

    `confused` are labels that the teacher gives to gold rows of another label, beyond chance.
    """
    names, given = np.unique([row["label"] for row in rows], return_inverse=True)
    # A label of fewer rows than folds can't be stratified: its rows get no linear prediction.
    frequent = np.bincount(given)[given] >= FOLDS
    kept, own = np.unique(given[frequent], return_inverse=True)
    texts = [row["text"] for row, is_frequent in zip(rows, frequent, strict=True) if is_frequent]
    own_probability, linear = np.zeros(len(rows)), names[given]
    if len(kept) > 1:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        predicted = cross_val_predict(baseline_model(seed, quick=True), texts, own, cv=folds, method="predict_proba")
        own_probability[frequent] = predicted[np.arange(len(own)), own]
        linear[frequent] = names[kept[predicted.argmax(axis=1)]]

    found = []
    for row, probability, other in zip(rows, own_probability, linear, strict=True):
        parts = [1 - float(probability)] + ([] if row["confidence"] is None else [1 - row["confidence"]])
        doubt = float(np.mean(parts)) if row["valid"] else 1.0
        found.append(Doubt(row, max(doubt, CONFUSED if row["label"] in confused else 0.0), str(other)))
    return found


def diverse_order(found: Sequence[Doubt], count: int, seed: int) -> list[Doubt]:
    """Return the first `count` rows to review, in rounds of ROUND; within a round the most doubtful first."""
    left = sorted(found, key=lambda one: -one.doubt)
    vectors = stored_vectors(one.row for one in left)
    if vectors is None:
        vectors = topic_vectors([one.row["text"] for one in left], seed)
    queue: list[Doubt] = []
    waiting = list(range(len(left)))
    while len(queue) < count and waiting:
        size = min(ROUND, count - len(queue))
        candidates = np.array(waiting[: size * CANDIDATES])
        if len(candidates) > size:
            weights = [left[place].doubt for place in candidates]
            candidates = candidates[cluster_middles(vectors[candidates], size, seed, weights)]
        places = set(candidates.tolist())
        queue += [left[place] for place in candidates]
        waiting = [place for place in waiting if place not in places]
    return queue
