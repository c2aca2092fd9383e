"""The arms of the comparison: their names and their prices."""

from typing import TypedDict

from stages.parts.numbers.metrics import ArmFigures, Metrics

NAMES = {
    "majority": "most frequent label",
    "linear_gold": "linear, gold labels",
    "linear_teacher": "linear, teacher's labels",
    "linear_cleaned": "linear, teacher's labels, cleaned",
    "linear_true": "linear, all true labels",
    "teacher": "teacher",
    "encoder": "encoder student",
    "base_plain": "base, plain prompt",
    "base_optimized": "base, optimised prompt",
    "tuned_plain": "tuned, plain prompt",
    "tuned_optimized": "tuned, optimised prompt",
}
STUDENT_ARMS = ("base_", "tuned_")
# sft.labels -> the linear models that are fitted on the labels that the student is trained on
SAME_LABELS = {
    "teacher": ("linear_cleaned", "linear_teacher"),
    "checked": ("linear_cleaned",),
    "true": ("linear_true",),
}


class ArmRow(TypedDict):
    """One arm in the report's table. Shares are in [0, 1], `cost` in dollars per million queries; None if not measured.

    `low` and `high` bound the accuracy. `less` is the served arm's accuracy minus this one's (`by`, `low`, `high`,
    `p`), None for the served arm itself.
    """

    arm: str
    name: str
    accuracy: float
    low: float
    high: float
    macro_f1: float | None
    valid: float | None
    valid_free: float | None
    tokens: float | None
    p50_ms: float | None
    cost: float | None
    less: dict[str, float] | None


def arm_rows(metrics: Metrics, cpu_price: float, student_price: float, of_teacher: float | None = None) -> list[ArmRow]:
    """Return the arms that were measured, in the order of NAMES.

    A query costs the seconds it takes with many in flight, at the price of an hour of its machine: the student's for
    base and tuned models, a CPU's for the others. A million of the teacher's cost
    `of_teacher`.
    """
    served = metrics.interval[metrics.served_arm].accuracy
    rows = []
    for arm, name in NAMES.items():
        if arm not in metrics.interval:
            continue
        measure, less = metrics.interval[arm], metrics.served_less.get(arm)
        figures = metrics.arms[arm]
        rows.append(
            ArmRow(
                arm=arm,
                name=name,
                accuracy=measure.accuracy,
                low=measure.low,
                high=measure.high,
                macro_f1=figures.macro_f1,
                valid=figures.valid,
                valid_free=figures.valid_free,
                tokens=figures.tokens,
                p50_ms=figures.p50_ms,
                cost=of_teacher
                if arm == "teacher"
                else query_cost(figures, student_price if arm.startswith(STUDENT_ARMS) else cpu_price),
                less={"by": served - measure.accuracy, **less.model_dump()} if less else None,
            )
        )
    return rows


def query_cost(figures: ArmFigures, price_per_hour: float) -> float | None:
    """Return the dollars of a million queries."""
    return None if figures.seconds is None else 1_000_000 * figures.seconds * price_per_hour / 3600


def best_linear(rows: list[ArmRow], labels: str) -> ArmRow:
    """Return the best linear model on the student's own labels (`sft.labels`)."""
    return max((row for row in rows if row["arm"] in SAME_LABELS[labels]), key=lambda row: row["accuracy"])
