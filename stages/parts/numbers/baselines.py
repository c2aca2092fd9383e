"""The linear baseline that every student has to beat."""

from collections.abc import Sequence
from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from stages.parts.task.features import characters, words

WHOLE: dict[str, Any] = {"max_iter": 300}
STOPPED_EARLY: dict[str, Any] = {"solver": "saga", "tol": 0.01}


def baseline_model(seed: int, *, quick: bool = False) -> Pipeline:
    """TF-IDF of words and characters with logistic regression, not fitted; 94.0 % on Banking77-25 from all true labels.

    `quick` stops short of the optimum, in a seventh of the time: it finds label errors as well (bench/NOTES.md).
    """
    solver = STOPPED_EARLY if quick else WHOLE
    return make_pipeline(make_union(words(2), characters(2, 5)), LogisticRegression(C=20, random_state=seed, **solver))


def fitted_baseline(rows: Sequence[tuple[str, str]], seed: int) -> Pipeline | None:
    """The baseline after learning from texts and labels; None where they can't teach it: no rows, one label, no term in
    two of them.
    """
    try:
        return baseline_model(seed).fit([text for text, _ in rows], [label for _, label in rows])
    except ValueError:
        return None
