"""DSPy's prompt optimisers, GEPA and MIPROv2, on a teacher. Their prompts may quote the gold rows they learned from."""

import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

import dspy
from dspy.teleprompt.gepa import InstructionProposer

from stages.parts.data.rows import Row
from stages.parts.run.errors import UserError
from stages.parts.run.params import PromptRecipe
from stages.parts.task.program import IntentClassifier, metric, predictor, using
from stages.parts.task.prompt import TeacherFormat
from stages.parts.task.text import safe_text
from stages.parts.teachers.inputs import TeacherInputs
from stages.parts.tuning.session import TeacherSession

# Rows that GEPA reflects on for a new prompt. If 90 % of the answers are right, 8 rows contain an error in 57 % of all
# cases, and DSPy's 3 rows in 27 %: without an error there is nothing to improve.
REFLECTED_ROWS = 8
MAX_VALIDATION = 50  # gold rows that score each prompt; more rows would leave calls for fewer prompts
PROMPTS = 5  # that MIPROv2 writes, and as many sets of demonstrations


class NamingProposer(InstructionProposer):
    """GEPA's proposer, whose prompts are made to name all labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(
            additional_instructions="Keep the list of intents with their exact names.", adapter=TeacherFormat()
        )
        self.labels = labels

    def __call__(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        written = super().__call__(candidate, reflective_dataset, components_to_update)
        return {name: with_all_labels(text, self.labels) for name, text in written.items()}


def with_all_labels(prompt: str, labels: Sequence[str]) -> str:
    """Return the prompt, followed by the list of labels if it lacks one of them."""
    if all(label in prompt for label in labels):
        return prompt
    names = "\n".join(f"- {label}" for label in labels)
    return f"{prompt} The intents are:\n{names}"


def feedback(descriptions: Mapping[str, str]) -> Any:
    """Return GEPA's metric: whether the label is right and, if not, which one is."""

    def score_with_feedback(
        example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        right = metric(example, prediction)
        meaning = f" ({descriptions[example.label]})" if example.label in descriptions else ""
        text = "Right." if right else f"Wrong: the label is {example.label}{meaning}, not {prediction.get('label')}."
        return dspy.Prediction(score=float(right), feedback=text)

    return score_with_feedback


def check_installed(recipes: Sequence[PromptRecipe]) -> None:
    """Raise UserError if a recipe needs a package that is not installed."""
    if "miprov2" in recipes and find_spec("optuna") is None:
        raise UserError("tune.candidates: miprov2 needs Optuna, which no lock file has: .venv/bin/pip install optuna")


def optimised(
    recipe: PromptRecipe,
    inputs: TeacherInputs,
    gold: Sequence[Row],
    session: TeacherSession,
    calls: int,
    seed: int,
) -> IntentClassifier:
    """Return `inputs.program` with the prompt that an optimiser finds in about `calls` answers.

    Half of `gold`, at most MAX_VALIDATION rows, chooses among prompts; the others and the reviewed rows train them.
    """
    start = inputs.program
    shuffled = random.Random(seed).sample(gold, len(gold))
    validation = min(len(gold) // 2, MAX_VALIDATION)
    trainset, valset = (
        [dspy.Example(query=row["text"], label=row["label"]).with_inputs("query") for row in rows]
        for rows in ([*shuffled[validation:], *inputs.reviewed], shuffled[:validation])
    )
    with session.for_optimiser(start) as (labelling, writing), using(labelling), quiet():
        if recipe == "gepa":
            optimiser = dspy.GEPA(
                metric=feedback(inputs.descriptions),
                max_metric_calls=calls,
                reflection_minibatch_size=REFLECTED_ROWS,
                reflection_lm=writing,
                instruction_proposer=NamingProposer(start.labels),
                use_merge=False,  # it joins predictors of two programs; ours has one
                num_threads=session.max_in_flight,
                seed=seed,
            )
            found = optimiser.compile(start, trainset=trainset, valset=valset)
        else:
            optimiser = dspy.MIPROv2(
                metric=metric,
                prompt_model=writing,
                task_model=labelling,
                auto=None,
                num_candidates=PROMPTS,
                num_threads=session.max_in_flight,
                seed=seed,
            )
            trials = max(1, calls // len(valset))
            found = optimiser.compile(start, trainset=trainset, valset=valset, num_trials=trials, minibatch=False)
    program, best = start.deepcopy(), predictor(found)
    predictor(program).signature = best.signature.with_instructions(
        with_all_labels(best.signature.instructions, start.labels)
    )
    predictor(program).demos = [demonstration(demo, start.labels) for demo in best.demos]
    return program


def demonstration(demo: Mapping[str, Any], labels: Sequence[str]) -> dspy.Example:
    """Return a demonstration as prompts show it: its harmless text, and no empty fields."""
    shown = {"query": safe_text(demo["query"], labels), "reasoning": demo.get("reasoning"), "label": demo["label"]}
    return dspy.Example(**{name: value for name, value in shown.items() if value})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the optimisers' bars and logs, which come every few rows."""
    loggers = [logging.getLogger(name) for name in ("dspy", "gepa", "optuna")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
