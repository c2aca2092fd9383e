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
from stages.parts.tuning.recipes import LEARNS, Recipes

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Score:
    """A recipe's answers to the gold rows: which are right, in their order, and what they cost."""

    recipe: PromptRecipe
    right: list[bool]
    failed: Counter[str]
    spent: Spending

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    def per_1000(self, total: float) -> float:
        return 1000 * total / len(self.right)

    @property
    def price(self) -> float:
        """Dollars of the answers, tokens where no price is known."""
        return self.spent.tokens if self.spent.dollars is None else self.spent.dollars


def folds(gold: Sequence[Row], count: int, seed: int) -> list[list[int]]:
    """Row numbers in `count` parts, the labels spread evenly over them."""
    numbers = random.Random(seed).sample(range(len(gold)), len(gold))
    numbers.sort(key=lambda number: gold[number]["label"])
    return [numbers[part::count] for part in range(count)]


def cross_fitted(recipes: Recipes, recipe: PromptRecipe, gold: Sequence[Row], count: int, seed: int) -> Score:
    """A recipe's score. What learns from gold answers each of `count` parts with a program that has learned from the
    others.
    """
    parts = folds(gold, count, seed) if recipe in LEARNS else [list(range(len(gold)))]
    answers: dict[int, Outcome] = {}
    spent = Spending(dollars=0.0 if recipes.session.teacher.price else None)
    for number, part in enumerate(parts, 1):
        others = [row for place, row in enumerate(gold) if place not in part]
        name = f"{recipe}, part {number} of {len(parts)}" if recipe in LEARNS else recipe
        with recipes.session.step(name, recipes.expected_answers(recipe, len(others)) + len(part)):
            found, cost = recipes.session.answers(recipes.program(recipe, others), [gold[place] for place in part])
        answers |= dict(zip(part, found, strict=True))
        spent = added(spent, cost)
    in_order = [answers[place] for place in range(len(gold))]
    right = [answer.prediction.label == row["label"] for answer, row in zip(in_order, gold, strict=True)]
    return Score(recipe, right, Counter(answer.failure.reason for answer in in_order if answer.failure), spent)


def added(first: Spending, second: Spending) -> Spending:
    dollars = None if first.dollars is None or second.dollars is None else first.dollars + second.dollars
    return Spending(
        first.answers + second.answers,
        first.prompt_tokens + second.prompt_tokens,
        first.completion_tokens + second.completion_tokens,
        dollars,
    )


def beaten_by(score: Score, others: Sequence[Score]) -> list[PromptRecipe]:
    """Those that are right significantly more often on the same rows."""
    better = [other for other in others if other.accuracy > score.accuracy]
    return [other.recipe for other in better if mcnemar(other.right, score.right) < SIGNIFICANT]


def choice(scores: Sequence[Score]) -> PromptRecipe:
    """The cheapest of those that none beats; of equal ones the first."""
    return min((score for score in scores if not beaten_by(score, scores)), key=lambda score: score.price).recipe


def compared(scores: Sequence[Score], seed: int) -> dict[str, Any]:
    """Each recipe's figures, as the report has them; differences are from the first."""
    found: dict[str, Any] = {}
    for score in scores:
        low, high = interval(sum(score.right), len(score.right))
        first = scores[0].right
        less_low, less_high = difference_interval(score.right, first, seed)
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
            "tokens_per_1000": round(score.per_1000(score.spent.tokens)),
            "dollars_per_1000": None if score.spent.dollars is None else round(score.per_1000(score.spent.dollars), 4),
            "beaten_by": beaten_by(score, scores),
        }
    return found
