"""The arms of the comparison: what they are called, what they cost, and which one a reader should take."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypedDict

NAMES = {
    "majority": "most frequent label",
    "linear_gold": "linear, gold labels",
    "linear_teacher": "linear, teacher's labels",
    "linear_cleaned": "linear, teacher's labels, cleaned",
    "linear_true": "linear, all true labels",
    "teacher": "teacher",
    "base_plain": "base, plain prompt",
    "base_optimized": "base, optimised prompt",
    "tuned_plain": "tuned, plain prompt",
    "tuned_optimized": "tuned, optimised prompt",
}
# sft.labels -> the linear models that learn from what the student learns from.
SAME_LABELS = {
    "teacher": ("linear_cleaned", "linear_teacher"),
    "checked": ("linear_cleaned",),
    "true": ("linear_true",),
}


class ArmRow(TypedDict):
    """One arm's line in the report. Shares are in [0, 1], `cost` in dollars per 1,000 queries; None where nothing was
    measured.

    `low`, `high` bound the accuracy; `less` holds the served arm's accuracy less this one's (`by`, `low`, `high`, `p`),
    None for itself.
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


def arm_rows(metrics: Mapping[str, Any], teacher: Mapping[str, Any], price_per_hour: float) -> list[ArmRow]:
    """The arms that were measured, in the order of NAMES.

    A query's cost is the seconds it takes with many in flight times the machine's price; the teacher's is its bill over
    its answers.
    """
    served = metrics["interval"][served_arm(metrics)]["accuracy"]
    rows = []
    for arm, name in NAMES.items():
        if arm not in metrics["interval"]:
            continue
        interval, figures = metrics["interval"][arm], metrics.get("arms", {}).get(arm, {})
        cost = 1000 * figures["seconds"] * price_per_hour / 3600 if "seconds" in figures else None
        if arm == "teacher" and teacher.get("cost"):
            cost = 1000 * teacher["cost"] / (teacher.get("answers") or teacher["rows"])
        less = metrics["served_less"].get(arm)
        rows.append(
            ArmRow(
                arm=arm,
                name=name,
                accuracy=interval["accuracy"],
                low=interval["low"],
                high=interval["high"],
                macro_f1=figures.get("macro_f1"),
                valid=figures.get("valid"),
                valid_free=figures.get("valid_free"),
                tokens=figures["prompt_tokens"] + figures["completion_tokens"] if "prompt_tokens" in figures else None,
                p50_ms=figures.get("p50_ms"),
                cost=cost,
                less={"by": served - interval["accuracy"], **less} if less else None,
            )
        )
    return rows


def served_arm(metrics: Mapping[str, Any]) -> str:
    return f"tuned_{metrics['served']['program']}"


def best_linear(rows: list[ArmRow], labels: str) -> ArmRow:
    """The best of the linear models on the student's own labels (`sft.labels`): whoever recommends the student has to
    beat that one.
    """
    return max((row for row in rows if row["arm"] in SAME_LABELS[labels]), key=lambda row: row["accuracy"])


def dollars(amount: float) -> str:
    """An amount to the cent, or with two digits that count where that is finer."""
    return f"${amount:.2f}" if amount >= 0.1 else f"${Decimal(f'{amount:.2g}'):f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def advice(rows: list[ArmRow], student: ArmRow, labels: str) -> list[str]:
    """What to do, the first sentence by itself: the linear model, unless the student's paired interval lies above
    it.
    """
    linear = best_linear(rows, labels)
    less = linear["less"]
    assert less, "the linear model is not the served arm"
    by_the_way = ""
    if student["cost"] and linear["cost"]:
        by_the_way = (
            f" 1,000 queries cost {dollars(linear['cost'])} with the linear model and "
            f"{dollars(student['cost'])} with the student."
        )
    right = f"{percent(student['accuracy'])} of the test queries right against {percent(linear['accuracy'])}"
    if less["low"] > 0:
        said = [
            "Serve the student.",
            f"It gets {right} with a linear model on the same labels: {points(less['by'])} points, 95 % interval "
            f"{points(less['low'])} to {points(less['high'])}.{by_the_way}",
        ]
    elif less["high"] < 0:
        said = [
            "Serve the linear model: it is better than the student.",
            f"Trained on the same labels it gets {percent(linear['accuracy'])} of the test queries right, the student "
            f"{percent(student['accuracy'])}: {points(-less['by'])} points, 95 % interval {points(-less['high'])} to "
            f"{points(-less['low'])}.{by_the_way}",
        ]
    else:
        said = [
            "Serve the linear model: the student is not shown to be better.",
            f"The student gets {right} with a linear model on the same labels; the difference of "
            f"{points(less['by'])} points has a 95 % "
            f"interval of {points(less['low'])} to {points(less['high'])}, which holds 0.{by_the_way}",
        ]
    teacher = next((row for row in rows if row["arm"] == "teacher"), None)
    if teacher and teacher["less"]:
        against = teacher["less"]
        told = (
            "better than"
            if against["low"] > 0
            else "worse than"
            if against["high"] < 0
            else "not shown to be better or worse than"
        )
        bill = f", whose answers cost {dollars(teacher['cost'])} per 1,000" if teacher["cost"] else ""
        said.append(
            f"On these rows the student is {told} its teacher ({percent(teacher['accuracy'])}{bill}): "
            f"{points(against['by'])} points, "
            f"{points(against['low'])} to {points(against['high'])}."
        )
    return said
