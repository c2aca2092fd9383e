"""The prompts that are compared, and how each is made from gold rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.parts.data.rows import Row
from stages.parts.run.params import Params, PromptRecipe
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.teachers.prompt_file import OPTIMISED, shown_by_nearness
from stages.parts.teachers.questions import Questions
from stages.parts.tuning.optimisers import demonstration, optimised
from stages.parts.tuning.session import Session

LEARNS: tuple[PromptRecipe, ...] = ("examples", *OPTIMISED)  # from gold rows


@dataclass(frozen=True)
class Recipes:
    """Makes programs. `questions.program` asks with the labels' descriptions, where there are any; what learns starts
    from it.
    """

    params: Params
    questions: Questions
    session: Session

    def candidates(self) -> list[PromptRecipe]:
        """In the order of params.yaml, without descriptions where labels have none."""
        return [
            recipe
            for recipe in dict.fromkeys(self.params.tune.candidates)
            if recipe != "descriptions" or self.questions.descriptions
        ]

    def expected_answers(self, recipe: PromptRecipe, rows: int) -> int:
        """How many answers a recipe needs, about, to learn from `rows` gold rows."""
        if recipe == "examples":
            return rows + len(self.questions.reviewed)
        return self.params.tune.optimiser_calls if recipe in OPTIMISED else 0

    def program(self, recipe: PromptRecipe, gold: Sequence[Row]) -> IntentClassifier:
        """The program that a recipe makes of these gold rows and the reviewed ones. Raises UserError as
        `Session.answers` does.
        """
        start, reviewed, params = self.questions.program, self.questions.reviewed, self.params
        if recipe == "descriptions":
            return start
        if recipe == "plain":
            return IntentClassifier(start.labels, params.program.instructions, start.style, {})
        if recipe == "examples":
            program = start.deepcopy()
            predictor(program).demos = self.demos([*gold, *reviewed])
            return shown_by_nearness(program, params.tune.examples)
        return optimised(
            recipe,
            start,
            gold,
            reviewed,
            self.questions.descriptions,
            self.session,
            params.tune.optimiser_calls,
            params.seed,
        )

    def demos(self, rows: Sequence[Row]) -> list[Any]:
        """Rows as demonstrations: with the teacher's own reasoning where that led it to the label, else without any, as
        DSPy has them.
        """
        answers, _ = self.session.answers(self.questions.program, rows)
        reasons = [
            answer.prediction.reasoning if answer.prediction.label == row["label"] else None
            for row, answer in zip(rows, answers, strict=True)
        ]
        shown = (
            {"query": row["text"], "reasoning": why, "label": row["label"]}
            for row, why in zip(rows, reasons, strict=True)
        )
        return [demonstration(demo, self.questions.labels) for demo in shown]
