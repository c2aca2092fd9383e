"""What an in-process student reads from texts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TextReadings:
    """Of N texts: the probabilities [N, K] of the labels, and the familiarity [N] in [-1, 1], None without an encoder.

    Familiarity is how near a text lies to texts that a label fits.
    """

    probabilities: np.ndarray
    familiarity: np.ndarray | None = None
