"""The prompts to compare, and how each is made from gold rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.parts.data.rows import Row
from stages.parts.run.params import Params, PromptRecipe
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.teachers.inputs import TeacherInputs
from stages.parts.teachers.prompt_file import OPTIMISED, with_retrieval
from stages.parts.tuning.optimisers import demonstration, optimised
from stages.parts.tuning.session import TeacherSession

LEARNS: tuple[PromptRecipe, ...] = ("examples", *OPTIMISED)  # from gold rows


@dataclass(frozen=True)
class PromptMaker:
    """Makes programs by recipe. Those that learn start from `inputs.program`, whose prompt has the descriptions."""

    params: Params
    inputs: TeacherInputs
    session: TeacherSession

    def candidates(self) -> list[PromptRecipe]:
        """Return the recipes of params.yaml, without `descriptions` if the labels have none."""
        return [
            recipe
            for recipe in dict.fromkeys(self.params.tune.candidates)
            if recipe != "descriptions" or self.inputs.descriptions
        ]

    def expected_answers(self, recipe: PromptRecipe, rows: int) -> int:
        """Return about how many answers a recipe needs to learn from `rows` gold rows."""
        if recipe == "examples":
            return rows + len(self.inputs.reviewed)
        return self.params.tune.optimiser_calls if recipe in OPTIMISED else 0

    def program(self, recipe: PromptRecipe, gold: Sequence[Row]) -> IntentClassifier:
        """Return the program that a recipe makes from these gold rows and the reviewed ones.

        Raises UserError like `TeacherSession.outcomes`.
        """
        start, params = self.inputs.program, self.params
        if recipe == "descriptions":
            return start
        if recipe == "plain":
            return IntentClassifier(start.labels, params.program.instructions, start.style, {})
        if recipe == "examples":
            program = start.deepcopy()
            predictor(program).demos = self.demos([*gold, *self.inputs.reviewed])
            return with_retrieval(program, params.tune.examples)
        return optimised(recipe, self.inputs, gold, self.session, params.tune.optimiser_calls, params.seed)

    def demos(self, rows: Sequence[Row]) -> list[Any]:
        """Return rows as demonstrations, with the teacher's own reasoning if it led to the right label, else without
        any, as in DSPy.
        """
        outcomes, _ = self.session.outcomes(self.inputs.program, rows)
        predictions = (outcome.prediction for outcome in outcomes)
        return [
            demonstration(
                {
                    "query": row["text"],
                    "reasoning": prediction.reasoning if prediction.label == row["label"] else None,
                    "label": row["label"],
                },
                self.inputs.labels,
            )
            for row, prediction in zip(rows, predictions, strict=True)
        ]
