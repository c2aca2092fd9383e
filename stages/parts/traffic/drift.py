"""What drift is noticed by: the share of queries that are as near to the learned texts as held-out rows are.

A query is familiar if its familiarity (task/readings.py) reaches that of all but a tenth of the held-out rows, which no
student has learned. How often such a query comes is then known from an order statistic, whatever the distribution
(Wilks 1941), and a change detector watches it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

STRANGE = 0.1  # share of held-out rows that do not count as familiar
DOUBT = 0.05  # the chance that familiar queries are rarer than `expected` though nothing has changed
FEWEST = 40  # held-out rows
FALSE_ALARM_AFTER = 10_000_000  # different queries, on average: three years at ten thousand a day


@dataclass(frozen=True)
class FamiliarTexts:
    """A query with a familiarity of at least `least` is familiar, and at least a share `expected` of queries is;
    `mean` is the mean familiarity of the held-out rows.
    """

    least: float
    expected: float
    mean: float


def familiar_texts(held_out: Iterable[Mapping[str, Any]]) -> FamiliarTexts | None:
    """Return what the rows of a held-out file say; None if they are too few, or their student knows no familiarity."""
    found = np.sort([row["familiarity"] for row in held_out if row.get("familiarity") is not None])
    if len(found) < FEWEST:
        return None
    strange = int(STRANGE * (len(found) + 1))
    expected = float(beta.ppf(DOUBT, len(found) - strange + 1, strange))
    return FamiliarTexts(float(found[strange - 1]), expected, float(found.mean()))
