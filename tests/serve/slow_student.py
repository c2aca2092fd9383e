"""`python -m serve` of an in-process student that takes SLOW_S seconds for a query."""

import os
import time
from collections.abc import Sequence

from serve.__main__ import main
from stages.parts.students.local import LocalClassifier
from stages.parts.students.prediction import CalibratedPrediction

classify = LocalClassifier.classify


def classify_slowly(student: LocalClassifier, queries: Sequence[str]) -> list[CalibratedPrediction]:
    time.sleep(float(os.environ["SLOW_S"]))
    return classify(student, queries)


if __name__ == "__main__":
    LocalClassifier.classify = classify_slowly
    main()
