"""Which prompt is worth its price: scored on gold rows that it has not learned from, compared on the same rows."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.parts.data.rows import Row
from stages.parts.engines.budget import Spending
from stages.parts.engines.requests import Outcome
from stages.parts.numbers.statistics import difference_interval, interval, mcnemar
from stages.parts.run.params import PromptRecipe
from stages.parts.tuning.recipes import LEARNS, PromptMaker

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Score:
    """A recipe's result on the gold rows: which are right, in their order, why rows failed, and what it cost."""

    recipe: PromptRecipe
    right: list[bool]
    failed: Counter[str]
    spending: Spending

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    def per_1000(self, total: float) -> float:
        return 1000 * total / len(self.right)

    @property
    def price(self) -> float:
        """Dollars of the answers, or tokens if no price is known."""
        return self.spending.tokens if self.spending.dollars is None else self.spending.dollars


def folds(gold: Sequence[Row], count: int, seed: int) -> list[list[int]]:
    """Return row numbers in `count` parts, each label spread evenly over them.

    scikit-learn's StratifiedKFold refuses gold rows in which no label has `count` rows.
    """
    numbers = random.Random(seed).sample(range(len(gold)), len(gold))
    numbers.sort(key=lambda number: gold[number]["label"])
    return [numbers[part::count] for part in range(count)]


def cross_fitted(maker: PromptMaker, recipe: PromptRecipe, gold: Sequence[Row], count: int, seed: int) -> Score:
    """Return a recipe's score. One that learns from gold labels each of `count` folds with a program made from the
    others.
    """
    parts = folds(gold, count, seed) if recipe in LEARNS else [list(range(len(gold)))]
    outcomes: dict[int, Outcome] = {}
    spending = Spending(dollars=0.0 if maker.session.teacher.price else None)
    for number, part in enumerate(parts, 1):
        others = [row for place, row in enumerate(gold) if place not in part]
        name = f"{recipe}, part {number} of {len(parts)}" if recipe in LEARNS else recipe
        with maker.session.step(name, maker.expected_answers(recipe, len(others)) + len(part)):
            found, cost = maker.session.outcomes(maker.program(recipe, others), [gold[place] for place in part])
        outcomes |= dict(zip(part, found, strict=True))
        spending = added(spending, cost)
    in_order = [outcomes[place] for place in range(len(gold))]
    right = [outcome.prediction.label == row["label"] for outcome, row in zip(in_order, gold, strict=True)]
    failed = Counter(outcome.failure.reason for outcome in in_order if outcome.failure)
    return Score(recipe, right, failed, spending)


def added(first: Spending, second: Spending) -> Spending:
    dollars = None if first.dollars is None or second.dollars is None else first.dollars + second.dollars
    return Spending(
        first.answers + second.answers,
        first.prompt_tokens + second.prompt_tokens,
        first.completion_tokens + second.completion_tokens,
        dollars,
    )


def beaten_by(score: Score, others: Sequence[Score]) -> list[PromptRecipe]:
    """Return the recipes that are right significantly more often on the same rows."""
    better = [other for other in others if other.accuracy > score.accuracy]
    return [other.recipe for other in better if mcnemar(other.right, score.right) < SIGNIFICANT]


def choice(scores: Sequence[Score]) -> PromptRecipe:
    """Return the cheapest recipe that none beats; the first of equally cheap ones."""
    return min((score for score in scores if not beaten_by(score, scores)), key=lambda score: score.price).recipe


def compared(scores: Sequence[Score]) -> dict[str, Any]:
    """Return each recipe's figures for the report; differences are from the first recipe."""
    found: dict[str, Any] = {}
    for score in scores:
        low, high = interval(sum(score.right), len(score.right))
        first = scores[0].right
        less_low, less_high = difference_interval(score.right, first)
        found[score.recipe] = {
            "accuracy": score.accuracy,
            "low": low,
            "high": high,
            "less_first": {
                "difference": score.accuracy - scores[0].accuracy,
                "low": less_low,
                "high": less_high,
                "p": mcnemar(score.right, first),
            },
            "failed": dict(score.failed.most_common()),
            "tokens_per_1000": round(score.per_1000(score.spending.tokens)),
            "dollars_per_1000": None
            if score.spending.dollars is None
            else round(score.per_1000(score.spending.dollars), 4),
            "beaten_by": beaten_by(score, scores),
        }
    return found
