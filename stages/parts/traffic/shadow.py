"""The served student compared with its shadow, on stored queries and on gold rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.parts.run.files import iter_jsonl
from stages.parts.traffic.shadow_rows import ShadowedRow


def share(values: Iterable[bool]) -> str:
    """Return the share of true values in percent, with the count of all."""
    found = list(values)
    return f"{sum(found) / len(found):.1%} of {len(found)}" if found else "none"


def compared_live(rows: Sequence[ShadowedRow]) -> str:
    """Return two lines: how often each student answers, and how often the teacher agrees with each."""
    from stages.parts.numbers.statistics import difference_interval  # scikit-learn: a second

    judged = [row for row in rows if row.teacher_label is not None]
    right = [[getattr(row, side).label == row.teacher_label for row in judged] for side in ("student", "shadow")]
    answered = [
        share(getattr(row, side).label == row.teacher_label for row in judged if getattr(row, side).answers)
        for side in ("student", "shadow")
    ]
    lines = [
        f"live: answered by the student {share(row.student.answers for row in rows)}, by the shadow "
        f"{share(row.shadow.answers for row in rows)}; equal labels "
        f"{share(row.student.label == row.shadow.label for row in rows)}"
    ]
    if judged:
        low, high = difference_interval(right[1], right[0])
        lines.append(
            f"with the teacher's label: right among answers {answered[0]} (student), {answered[1]} (shadow); of all "
            f"{share(right[0])}, {share(right[1])}; shadow minus student {100 * low:+.1f} to {100 * high:+.1f} points"
        )
    return "\n".join(lines)


def compared_on_gold(student: Path, shadow: Path) -> str:
    """Return a line on the gold rows that two held-out files share."""
    from stages.parts.numbers.statistics import difference_interval  # scikit-learn: a second

    first, second = (
        {
            row["id"]: next(iter(row["probabilities"]), "") == row["label"]
            for row in iter_jsonl(file)
            if row["by"] == "hand"
        }
        for file in (student, shadow)
    )
    both = sorted(first.keys() & second.keys())
    if not both:
        return f"gold: {student} and {shadow} share no row"
    right = [first[row] for row in both], [second[row] for row in both]
    low, high = difference_interval(right[1], right[0])
    return (
        f"gold: right {share(right[0])} (student), {share(right[1])} (shadow); shadow minus student "
        f"{100 * low:+.1f} to {100 * high:+.1f} points"
    )
