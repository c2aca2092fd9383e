"""The linear baseline that every student has to beat."""

from collections.abc import Sequence
from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from stages.parts.task.features import characters, words

WHOLE: dict[str, Any] = {"max_iter": 300}
STOPPED_EARLY: dict[str, Any] = {"solver": "saga", "tol": 0.01}


def baseline_model(seed: int, *, quick: bool = False) -> Pipeline:
    """Return TF-IDF of words and characters with logistic regression, not fitted.

    `quick` stops short of the optimum, after a seventh of the time: enough to find label errors.
    """
    solver = STOPPED_EARLY if quick else WHOLE
    return make_pipeline(make_union(words(2), characters(2, 5)), LogisticRegression(C=20, random_state=seed, **solver))


def fitted_baseline(rows: Sequence[tuple[str, str]], seed: int) -> Pipeline | None:
    """Return the baseline fitted on texts and labels; None if they can't be fitted: no rows, one label, no common
    term.
    """
    try:
        return baseline_model(seed).fit([text for text, _ in rows], [label for _, label in rows])
    except ValueError:
        return None
