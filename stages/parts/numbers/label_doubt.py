"""Which labels are more likely wrong than right, by what a teacher says of its own certainty and how that went on gold
rows.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.isotonic import IsotonicRegression


def likely_wrong(
    confidence: Sequence[float | None], gold_confidence: Sequence[float | None], gold_right: Sequence[bool]
) -> np.ndarray:
    """A mask [N] of rows whose calibrated confidence is below a half; those without any are kept.

    Calibrated by isotonic regression on gold (Zadrozny and Elkan 2002): a confidence that says nothing of who is right
    is the share of gold rows that are, whatever its value, and drops none.
    """
    known = [(sure, right) for sure, right in zip(gold_confidence, gold_right, strict=True) if sure is not None]
    if not known:
        return np.zeros(len(confidence), bool)
    calibrated = IsotonicRegression(out_of_bounds="clip").fit(*zip(*known, strict=True))
    return np.array([sure is not None for sure in confidence]) & (
        calibrated.predict([sure or 0.0 for sure in confidence]) < 0.5
    )
