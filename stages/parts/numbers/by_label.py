"""A classifier's answers label by label: where it is weak, and which queries show it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from sklearn.metrics import precision_recall_fscore_support

CONFUSIONS = 3  # a label
EXAMPLES = 3  # a confusion


class LabelConfusion(TypedDict):
    """Rows of a label that got another one, `said`, and some of their texts."""

    said: str
    rows: int
    examples: list[str]


class LabelFigures(TypedDict):
    """One label's figures in [0, 1]; `rows` is how many have it, `said` how many got it; `confusions` with the most
    rows first.
    """

    label: str
    rows: int
    said: int
    precision: float
    recall: float
    f1: float
    confusions: list[LabelConfusion]


def by_label(
    actual: Sequence[str], predicted: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> list[LabelFigures]:
    """The figures of each label, in the order of `labels`; a precision or recall of no rows is 0."""
    precision, recall, f1, rows = precision_recall_fscore_support(
        actual, predicted, labels=list(labels), zero_division=0
    )
    mistaken: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for true, said, text in zip(actual, predicted, texts, strict=True):
        if true != said:
            mistaken[true][said].append(text)
    return [
        LabelFigures(
            label=label,
            rows=int(rows[number]),
            said=sum(answer == label for answer in predicted),
            precision=float(precision[number]),
            recall=float(recall[number]),
            f1=float(f1[number]),
            confusions=[
                LabelConfusion(said=said, rows=len(found), examples=found[:EXAMPLES])
                for said, found in sorted(mistaken[label].items(), key=lambda item: (-len(item[1]), item[0]))[
                    :CONFUSIONS
                ]
            ],
        )
        for number, label in enumerate(labels)
    ]
