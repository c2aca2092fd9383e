"""What a classifier says of each true label."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from stages.parts.task.labels import UNKNOWN


def confusion_shares(actual: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    """Shares in [0, 1] of each true label's rows (index) that got each label (columns), both by name; UNKNOWN for
    answers that are no label, where there are any."""
    names = [*sorted(labels), UNKNOWN] if set(predicted) - set(labels) else sorted(labels)
    counts = confusion_matrix(actual, [label if label in labels else UNKNOWN for label in predicted], labels=names)
    return pd.DataFrame(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), index=names, columns=names)
