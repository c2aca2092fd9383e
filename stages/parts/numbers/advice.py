"""What to serve, with which command, and why: the first lines of the report and of the model card."""

from dataclasses import dataclass

from stages.parts.numbers.break_even import BreakEven
from stages.parts.numbers.metrics import ContenderFigures, Metrics
from stages.parts.numbers.render import dollars, percent, points

CONTENDERS = {"linear": "linear model", "encoder": "encoder student", "decoder": "decoder", "teacher": "teacher"}


@dataclass(frozen=True)
class Advice:
    """`verdict` names the contender to serve, `command` serves it, `reasons` are sentences."""

    verdict: str
    command: str
    reasons: list[str]

    def __str__(self) -> str:
        return " ".join([f"{self.verdict} `{self.command}`.", *self.reasons])


def serve_command(contender: str) -> str:
    return f"python -m serve --model {contender}"


def advice(metrics: Metrics, pays: BreakEven) -> Advice:
    """Return which contender dev rows chose, and what test rows and prices say of it."""
    name, figures = CONTENDERS[metrics.serve], metrics.contenders[metrics.serve]
    reasons = [of_test(figures), compared(metrics), f"Chosen by {metrics.why}.", *break_even_sentences(pays, name)]
    return Advice(f"Serve the {name}:", serve_command(metrics.serve), reasons)


def of_test(figures: ContenderFigures) -> str:
    """Return how often a contender is right, in a sentence."""
    found = figures.accuracy
    sentence = f"It is right on {percent(found.accuracy)} of {found.n} test queries "
    sentence += f"({100 * found.low:.1f} to {100 * found.high:.1f})"
    if figures.precision is None or figures.answered is None:
        return f"{sentence}, and would abstain on all of them."
    right = percent(figures.precision.accuracy)
    return f"{sentence}. It answers {percent(figures.answered)} of them, and {right} of these answers are right."


def compared(metrics: Metrics) -> str:
    """Return the paired difference of the served contender to the best one, in a sentence."""
    figures = metrics.contenders[metrics.serve]
    if figures.less is None:
        return "No contender is right more often."
    best = next(name for name, other in metrics.contenders.items() if other.less is None)
    by = metrics.contenders[best].accuracy.accuracy - figures.accuracy.accuracy
    verdict = "is better" if figures.less.low > 0 else "is not shown to be better"
    return (
        f"The best on test, the {CONTENDERS[best]}, {verdict}: {points(by)} points (95 % interval "
        f"{points(figures.less.low)} to {points(figures.less.high)})."
    )


def break_even_sentences(found: BreakEven, name: str) -> list[str]:
    """Return a break-even in sentences; `name` is the student's."""
    student = f"A million queries cost {dollars(found.student_per_million)} from the {name} on a busy machine"
    dated = f"Prices are of {found.prices_date}."
    if found.teacher_per_thousand is None:
        return [f"{student}. What the teacher's queries cost is not known, so the break-even is not either. {dated}"]
    if found.teacher_per_thousand == 0:
        return [f"The teacher costs nothing, so there is nothing to earn back. {student}. {dated}"]
    bills = [
        f"{what} cost {dollars(amount)}" if amount is not None else f"what {what} cost was not measured"
        for what, amount in (("labelling", found.labelling), ("training", found.training))
    ]
    prices = f"A thousand queries cost {dollars(found.teacher_per_thousand)} from the teacher. {student}."
    whole = 1000 * found.teacher_per_thousand
    share = f"if the teacher answers the {percent(found.escalated)} on which it abstains"
    if found.queries is None or found.saved_per_million is None:
        beside = f"a million queries cost {dollars(whole - (found.saved_per_million or 0))}"
        never = f"The {name} never pays for itself: {share}, {beside}; {dollars(whole)} from the teacher alone."
        return [prices, f"{never} {dated}"]
    paid = f"the {name} has paid for itself after {found.queries:,} queries, {share}"
    return [prices, f"{bills[0].capitalize()}, {bills[1]}: {paid}. {dated}"]
