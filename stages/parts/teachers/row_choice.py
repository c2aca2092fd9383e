"""Which rows of the pool are labelled, where not all are to be paid for."""

import random

import numpy as np

from stages.parts.run.params import RowChoice
from stages.parts.teachers.rows import RowSource, at_places

BATCH = 2048


def chosen(pool: RowSource, count: int | None, how: RowChoice, seed: int) -> RowSource:
    """`count` rows in the pool's order (None, or more than there are: all): drawn at random, or to cover the pool, the
    row nearest to the middle of each of `count` clusters of LSA vectors."""
    if count is None or count >= len(pool):
        return pool
    draw = random.Random(seed)
    if how == "random":
        return at_places(pool, set(draw.sample(range(len(pool)), count)))
    from sklearn.cluster import MiniBatchKMeans  # 150 MB and seconds, which those who ask about all rows are spared

    from stages.parts.task.features import topic_vectors

    vectors = topic_vectors([row["text"] for row in pool], seed)
    clusters = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=BATCH).fit(vectors)
    distances = np.linalg.norm(vectors - clusters.cluster_centers_[clusters.labels_], axis=1)
    nearest: dict[int, int] = {}
    for place in np.argsort(distances, kind="stable"):
        nearest.setdefault(int(clusters.labels_[place]), int(place))
    taken = set(nearest.values())  # fewer than wanted, where clusters are empty
    others = [place for place in range(len(pool)) if place not in taken]
    return at_places(pool, taken | set(draw.sample(others, count - len(taken))))
