"""Texts that no label fits: how many a service answers anyway, and whether its confidence tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from stages.parts.numbers.calibration import calibrated
from stages.parts.numbers.metrics import OutOfScopeFigures, ScopeFigures
from stages.parts.task.labels import NONE_OF_THESE

CONFIDENT = 0.9
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


def separation(inside: np.ndarray, outside: np.ndarray, answered: float) -> ScopeFigures:
    """Return how well the familiarity [N] of texts that a label fits and [M] of texts that none fits tells them apart;
    `answered` is the share of the latter that is answered.
    """
    return ScopeFigures(
        answered=answered,
        auroc=float(roc_auc_score([1] * len(inside) + [0] * len(outside), np.concatenate([inside, outside]))),
        at_coverage={
            f"{coverage:.2f}": float(np.mean(outside >= np.quantile(inside, 1 - coverage))) for coverage in COVERAGES
        },
    )


def out_of_scope_figures(
    inside: Sequence[ScopedConfidence],
    outside: Sequence[ScopedConfidence],
    threshold: float | None,
    familiarity: ScopeFigures | None = None,
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
        familiarity=familiarity,
    )
