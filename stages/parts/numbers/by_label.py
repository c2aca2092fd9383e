"""A classifier's answers label by label: its weak labels, the texts that show them, and the confusion matrix."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from stages.parts.task.labels import UNKNOWN

CONFUSIONS = 3  # shown for each label
EXAMPLES = 3  # shown for each confusion


class LabelConfusion(TypedDict):
    """How many rows of one label were predicted as another, and the first of their texts."""

    predicted: str
    rows: int
    examples: list[str]


class LabelFigures(TypedDict):
    """One label's figures in [0, 1]. `rows` counts its true rows, `predicted` the rows predicted as this label;
    `confusions` are its most frequent ones, most frequent first.
    """

    label: str
    rows: int
    predicted: int
    precision: float
    recall: float
    f1: float
    confusions: list[LabelConfusion]


def by_label(
    actual: Sequence[str], predicted: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> list[LabelFigures]:
    """Return the figures of each label, in the order of `labels`; a precision or recall of no rows is 0."""
    precision, recall, f1, rows = precision_recall_fscore_support(
        actual, predicted, labels=list(labels), zero_division=0
    )
    mistaken: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for true, answer, text in zip(actual, predicted, texts, strict=True):
        if true != answer:
            mistaken[true][answer].append(text)
    return [
        LabelFigures(
            label=label,
            rows=int(rows[number]),
            predicted=sum(answer == label for answer in predicted),
            precision=float(precision[number]),
            recall=float(recall[number]),
            f1=float(f1[number]),
            confusions=[
                LabelConfusion(predicted=answer, rows=len(found), examples=found[:EXAMPLES])
                for answer, found in sorted(mistaken[label].items(), key=lambda item: (-len(item[1]), item[0]))[
                    :CONFUSIONS
                ]
            ],
        )
        for number, label in enumerate(labels)
    ]


def confusion_shares(actual: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    """Return the shares in [0, 1] of each true label's rows (index) that were predicted as each label (columns).

    Both are sorted by name. UNKNOWN comes last, if any prediction is no label.
    """
    names = [*sorted(labels), UNKNOWN] if set(predicted) - set(labels) else sorted(labels)
    counts = confusion_matrix(actual, [label if label in labels else UNKNOWN for label in predicted], labels=names)
    return pd.DataFrame(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), index=names, columns=names)
