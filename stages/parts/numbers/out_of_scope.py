"""Texts that no label fits: how many a service answers all the same, and whether its confidence tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from stages.parts.numbers.calibration import calibrated
from stages.parts.task.labels import NONE_OF_THESE

CONFIDENT = 0.9
COVERAGES = (0.7, 0.8, 0.84, 0.9)  # shares of the inside rows that are answered


@dataclass(frozen=True)
class ScopedConfidence:
    """Of one text: the calibrated confidence in the likeliest of the labels, and whether that is the answer (not
    none_of_these).
    """

    confidence: float
    named: bool


def scoped_confidence(probabilities: Mapping[str, float], temperature: float) -> ScopedConfidence:
    found = calibrated(probabilities, temperature)
    likeliest = next(iter(found), NONE_OF_THESE)
    return ScopedConfidence(
        max((chance for label, chance in found.items() if label != NONE_OF_THESE), default=0.0),
        likeliest != NONE_OF_THESE,
    )


def out_of_scope_figures(
    inside: Sequence[ScopedConfidence], outside: Sequence[ScopedConfidence], threshold: float | None
) -> dict[str, Any]:
    """Of texts that no label fits (`n`): the share answered with a label at the threshold, and of all of them the share
    that is so with a confidence above 0.9; `inside_answered` is the share of texts that a label fits. Every one of the
    former is wrong.

    `auroc` is the probability that a text inside has the higher confidence in its likeliest label. `at_coverage` is the
    share outside that is answered at the confidence at which a share of those inside is (None where so many are never
    answered, at any confidence).
    """

    def share(texts: Sequence[ScopedConfidence], least: float | None) -> float:
        return float(np.mean([text.named and least is not None and text.confidence >= least for text in texts]))

    sure = sorted((text.confidence for text in inside if text.named), reverse=True)
    needed = {coverage: round(coverage * len(inside)) for coverage in COVERAGES}
    return {
        "n": len(outside),
        "answered": share(outside, threshold),
        "confident": share(outside, max(CONFIDENT, threshold)) if threshold is not None else 0.0,
        "inside_answered": share(inside, threshold),
        "auroc": float(
            roc_auc_score([1] * len(inside) + [0] * len(outside), [text.confidence for text in [*inside, *outside]])
        ),
        "at_coverage": {
            f"{coverage:.2f}": share(outside, sure[count - 1]) if 0 < count <= len(sure) else None
            for coverage, count in needed.items()
        },
    }
