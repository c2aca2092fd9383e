"""The arms of the comparison: their names, their prices, and which one to serve."""

from collections.abc import Mapping
from typing import Any, TypedDict

from stages.parts.numbers.metrics import ArmFigures, Metrics
from stages.parts.numbers.render import dollars, percent, points

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
    """One arm in the report's table. Shares are in [0, 1], `cost` in dollars per 1,000 queries; None if not measured.

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


def arm_rows(metrics: Metrics, teacher: Mapping[str, Any], cpu_price: float, student_price: float) -> list[ArmRow]:
    """Return the arms that were measured, in the order of NAMES.

    A query costs the seconds it takes with many in flight, at the price of an hour of its machine: the student's for
    base and tuned models, a CPU's for the others. The teacher, if it has a bill, costs that bill over its answers.
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
                cost=teacher_cost(teacher)
                if arm == "teacher"
                else query_cost(figures, student_price if arm.startswith(STUDENT_ARMS) else cpu_price),
                less={"by": served - measure.accuracy, **less.model_dump()} if less else None,
            )
        )
    return rows


def query_cost(figures: ArmFigures, price_per_hour: float) -> float | None:
    """Return the dollars of 1,000 queries."""
    return None if figures.seconds is None else 1000 * figures.seconds * price_per_hour / 3600


def teacher_cost(teacher: Mapping[str, Any]) -> float | None:
    """Return the dollars of 1,000 answers of the teacher, from its report."""
    return 1000 * teacher["cost"] / (teacher.get("answers") or teacher["rows"]) if teacher.get("cost") else None


def best_linear(rows: list[ArmRow], labels: str) -> ArmRow:
    """Return the best linear model on the student's own labels (`sft.labels`)."""
    return max((row for row in rows if row["arm"] in SAME_LABELS[labels]), key=lambda row: row["accuracy"])


def best_rival(rows: list[ArmRow], labels: str) -> ArmRow:
    """Return the better of the linear model and the encoder student: what a decoder worth serving must beat."""
    encoder = [row for row in rows if row["arm"] == "encoder"]
    return max([best_linear(rows, labels), *encoder], key=lambda row: row["accuracy"])


def advice(rows: list[ArmRow], student: ArmRow, labels: str) -> list[str]:
    """Return sentences that say which model to serve; the first stands alone.

    It is the student's best rival unless the student's paired interval lies above it.
    """
    rival = best_rival(rows, labels)
    model, name = ("encoder", "encoder student") if rival["arm"] == "encoder" else ("linear", "linear model")
    less = rival["less"]
    assert less, "a rival is not the served arm"
    difference = f"a difference of {points(less['by'])} points (95 % interval {points(less['low'])} to "
    difference += f"{points(less['high'])})"
    accuracies = (
        f"The decoder is right on {percent(student['accuracy'])} of the test queries, the {name} on the same labels on "
        f"{percent(rival['accuracy'])}: {difference}."
    )
    if student["cost"] and rival["cost"]:
        accuracies += f" 1,000 queries cost {dollars(student['cost'])} and {dollars(rival['cost'])}."
    if less["low"] > 0:
        verdict = "Serve the decoder."
    elif less["high"] < 0:
        verdict = f"Serve the {name}: it is better than the decoder."
    else:
        verdict = f"Serve the {name}: the decoder is not shown to be better."
    sentences = [verdict, accuracies]
    if less["low"] <= 0:
        sentences.append(f"To serve it: python -m serve --model {model}")
    teacher = next((row for row in rows if row["arm"] == "teacher"), None)
    if teacher and teacher["less"]:
        less = teacher["less"]
        if less["low"] > 0:
            compared = "more accurate than"
        elif less["high"] < 0:
            compared = "less accurate than"
        else:
            compared = "not shown to be more or less accurate than"
        bill = f"; 1,000 of its answers cost {dollars(teacher['cost'])}" if teacher["cost"] else ""
        sentences.append(
            f"The decoder is {compared} its teacher ({percent(teacher['accuracy'])}{bill}): "
            f"{points(less['by'])} points ({points(less['low'])} to {points(less['high'])})."
        )
    return sentences
