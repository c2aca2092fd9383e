"""Texts that no label fits: how many a service answers anyway, and whether its confidence tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from stages.parts.numbers.calibration import calibrated
from stages.parts.numbers.metrics import OutOfScopeFigures, ScopeFigures
from stages.parts.task.labels import NONE_OF_THESE

CONFIDENT = 0.9
NEIGHBOURS, ROWS_AT_ONCE = 20, 256
COVERAGES = (0.7, 0.8, 0.84, 0.9)  # shares of the inside rows that are answered


@dataclass(frozen=True)
class ScopedConfidence:
    """The calibrated confidence of a text's most likely label other than none_of_these, and whether that label is the
    answer.
    """

    confidence: float
    named: bool


def scoped_confidence(probabilities: Mapping[str, float], temperature: float) -> ScopedConfidence:
    found = calibrated(probabilities, temperature)
    answer = next(iter(found), NONE_OF_THESE)
    return ScopedConfidence(
        max((chance for label, chance in found.items() if label != NONE_OF_THESE), default=0.0),
        answer != NONE_OF_THESE,
    )


def scope_scores(vectors: np.ndarray, pool: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return how well unit vectors [N, D] fit the pool [M, D], in [-1, 1]: low for texts that no label fits.

    The mean over the NEIGHBOURS nearest pool rows of cosine times the root of the label's confidence [M]. Without the
    confidence, out-of-scope texts in the pool would make their like look familiar. No out-of-scope row is needed to fit
    anything.
    """
    nearest = min(NEIGHBOURS, len(pool))
    found = np.empty(len(vectors))
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        cosines = vectors[start : start + ROWS_AT_ONCE] @ pool.T
        rows = np.argpartition(cosines, -nearest, axis=1)[:, -nearest:]
        found[start : start + ROWS_AT_ONCE] = (np.take_along_axis(cosines, rows, 1) * np.sqrt(confidence[rows])).mean(1)
    return found


def separation(inside: np.ndarray, outside: np.ndarray) -> ScopeFigures:
    """Return how well scores [N] of texts that a label fits and [M] of texts that none fits tell them apart."""
    return ScopeFigures(
        auroc=float(roc_auc_score([1] * len(inside) + [0] * len(outside), np.concatenate([inside, outside]))),
        at_coverage={
            f"{coverage:.2f}": float(np.mean(outside >= np.quantile(inside, 1 - coverage))) for coverage in COVERAGES
        },
    )


def out_of_scope_figures(
    inside: Sequence[ScopedConfidence],
    outside: Sequence[ScopedConfidence],
    threshold: float | None,
    similarity: ScopeFigures | None = None,
) -> OutOfScopeFigures:
    """Return how texts that a label fits (`inside`) and texts that none fits (`outside`) are answered."""

    def answered(texts: Sequence[ScopedConfidence], least: float | None) -> float:
        return float(np.mean([text.named and least is not None and text.confidence >= least for text in texts]))

    ranked = sorted((text.confidence for text in inside if text.named), reverse=True)
    needed = {coverage: round(coverage * len(inside)) for coverage in COVERAGES}
    return OutOfScopeFigures(
        n=len(outside),
        answered=answered(outside, threshold),
        confident=answered(outside, max(CONFIDENT, threshold)) if threshold is not None else 0.0,
        inside_answered=answered(inside, threshold),
        auroc=float(
            roc_auc_score([1] * len(inside) + [0] * len(outside), [text.confidence for text in [*inside, *outside]])
        ),
        at_coverage={
            f"{coverage:.2f}": answered(outside, ranked[count - 1]) if 0 < count <= len(ranked) else None
            for coverage, count in needed.items()
        },
        similarity=similarity,
    )
