"""DSPy's prompt optimisers, GEPA and MIPROv2, on a teacher. What they write may quote the gold rows that they saw."""

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
from stages.parts.task.dspy_context import using
from stages.parts.task.examples import metric
from stages.parts.task.program import IntentClassifier, predictor
from stages.parts.task.prompt import TeacherFormat
from stages.parts.task.safe_text import safe_text
from stages.parts.tuning.session import Session

# for one new prompt: where nine of ten answers are right, 57 % of such samples hold an error, 27 % of DSPy's three rows
REFLECTED_ROWS = 8
MOST_CHOOSING = 50  # gold rows that each prompt is scored on: the calls are for trying more prompts
PROMPTS = 5  # that MIPROv2 has written, and as many sets of demonstrations


class NamingProposer(InstructionProposer):
    """GEPA's own, held to prompts that name all labels."""

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
        return {name: naming_all(text, self.labels) for name, text in written.items()}


def naming_all(prompt: str, labels: Sequence[str]) -> str:
    """A prompt, with the labels' names behind it where it lacks one."""
    if all(label in prompt for label in labels):
        return prompt
    names = "\n".join(f"- {label}" for label in labels)
    return f"{prompt} The intents are:\n{names}"


def feedback(descriptions: Mapping[str, str]) -> Any:
    """GEPA's metric: whether the label is right and, where it is not, which one is."""

    def judged(
        example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        right = metric(example, prediction)
        meaning = f" ({descriptions[example.label]})" if example.label in descriptions else ""
        said = "Right." if right else f"Wrong: the label is {example.label}{meaning}, not {prediction.get('label')}."
        return dspy.Prediction(score=float(right), feedback=said)

    return judged


def check_installed(recipes: Sequence[PromptRecipe]) -> None:
    """Raises UserError where a recipe needs a package that is not there."""
    if "miprov2" in recipes and find_spec("optuna") is None:
        raise UserError("tune.candidates: miprov2 needs Optuna, which no lock holds: .venv/bin/pip install optuna")


def optimised(
    recipe: PromptRecipe,
    start: IntentClassifier,
    gold: Sequence[Row],
    reviewed: Sequence[Row],
    descriptions: Mapping[str, str],
    session: Session,
    calls: int,
    seed: int,
) -> IntentClassifier:
    """`start` with the prompt that an optimiser finds with about `calls` answers. It chooses by half of gold, 50 rows
    at the most, and learns from the others and the reviewed rows."""
    shuffled = random.Random(seed).sample(gold, len(gold))
    choosing = min(len(gold) // 2, MOST_CHOOSING)
    chosen_by, learned_from = shuffled[:choosing], [*shuffled[choosing:], *reviewed]
    trainset, valset = (
        [dspy.Example(query=row["text"], label=row["label"]).with_inputs("query") for row in rows]
        for rows in (learned_from, chosen_by)
    )
    with session.for_optimiser(start) as (labelling, writing), using(labelling), quiet():
        if recipe == "gepa":
            optimiser = dspy.GEPA(
                metric=feedback(descriptions),
                max_metric_calls=calls,
                reflection_minibatch_size=REFLECTED_ROWS,
                reflection_lm=writing,
                instruction_proposer=NamingProposer(start.labels),
                use_merge=False,  # which joins the predictors of two programs; there is one
                num_threads=session.threads,
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
                num_threads=session.threads,
                seed=seed,
            )
            trials = max(1, calls // len(valset))
            found = optimiser.compile(start, trainset=trainset, valset=valset, num_trials=trials, minibatch=False)
    program, best = start.deepcopy(), predictor(found)
    predictor(program).signature = best.signature.with_instructions(
        naming_all(best.signature.instructions, start.labels)
    )
    predictor(program).demos = [demonstration(demo, start.labels) for demo in best.demos]
    return program


def demonstration(demo: Mapping[str, Any], labels: Sequence[str]) -> dspy.Example:
    """A demonstration with what a prompt shows of it."""
    shown = {"query": safe_text(demo["query"], labels), "reasoning": demo.get("reasoning"), "label": demo["label"]}
    return dspy.Example(**{name: value for name, value in shown.items() if value})


@contextmanager
def quiet() -> Iterator[None]:
    """Without the optimisers' bars and logs, of which there is one for each few rows."""
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
