"""A tuned teacher prompt, data/prompts/PROFILE.json: a DSPy program's JSON and what it was tuned for.

`make tune-teacher` writes it, people review it, Git keeps it, and stage `teacher` uses it; without one, the prompt is
the labels with their descriptions. It contains gold texts: demonstrations, and quotations by an optimiser.
"""

from pathlib import Path
from typing import Any

from dspy.utils.saving import get_dependency_versions
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from stages.parts.run.params import PromptRecipe
from stages.parts.run.paths import PROMPTS
from stages.parts.task.features import Nearest
from stages.parts.task.program import IntentClassifier

OPTIMISED: tuple[PromptRecipe, ...] = ("gepa", "miprov2")  # learned from gold rows, so gold rows don't test them
WHAT_TO_DO = "run `make tune-teacher` again, or remove the file to do without"


class Origin(BaseModel):
    """What a prompt was tuned for: it fits these labels and this model only.

    `retrieve` is how many demonstrations a prompt shows, those nearest to the query; None shows all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: PromptRecipe
    retrieve: int | None = Field(gt=0)
    model: str
    labels: list[str]
    instructions: str
    descriptions: dict[str, str]


class Metadata(Origin):
    dependency_versions: dict[str, str]  # DSPy's own key


class Demo(BaseModel):
    query: str
    label: str
    reasoning: str | None = None


class SignatureState(BaseModel):
    instructions: str = Field(min_length=1)
    fields: list[dict[str, str]]


class PredictorState(BaseModel):
    demos: list[Demo]
    signature: SignatureState
    lm: None


class PromptFile(BaseModel):
    """The parts of DSPy's JSON that are checked here."""

    model_config = ConfigDict(extra="forbid")

    predictor: PredictorState = Field(alias="classify.predict")
    metadata: Metadata


def prompt_path(profile: str) -> Path:
    return PROMPTS / f"{profile}.json"


def save_prompt(program: IntentClassifier, origin: Origin, path: Path) -> None:
    versions = get_dependency_versions()
    metadata = Metadata(dependency_versions=versions, **origin.model_dump())
    write_json(path, {**program.dump_state(), "metadata": metadata.model_dump()})


def load_prompt(path: Path, plain: IntentClassifier, in_force: dict[str, Any]) -> tuple[IntentClassifier, PromptRecipe]:
    """Return a file's program and recipe. `plain` is an untuned program for the same labels.

    Raises UserError for a file that is no prompt, has other labels, or whose `Origin` differs from the values
    `in_force`.
    """
    saved = read_json(path)
    try:
        found = PromptFile.model_validate(saved)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}: {WHAT_TO_DO}"
        ) from None
    for name, value in in_force.items():
        if getattr(found.metadata, name) != value:
            raise UserError(f"{path} was tuned for {'other' if name.endswith('s') else 'another'} {name}: {WHAT_TO_DO}")
    prompt = found.predictor.signature.instructions
    if unnamed := [label for label in plain.labels if label not in prompt]:
        raise UserError(f"{path}: its instructions do not name the label {unnamed[0]}: name it, or {WHAT_TO_DO}")
    if strange := [demo.label for demo in found.predictor.demos if demo.label not in plain.labels]:
        raise UserError(f"{path}: a demonstration has the unknown label {strange[0]!r}: correct it, or {WHAT_TO_DO}")
    program = plain.deepcopy()
    if found.predictor.signature.fields != next(iter(program.dump_state().values()))["signature"]["fields"]:
        raise UserError(f"{path} is a program with other fields: {WHAT_TO_DO}")
    program.load_state(saved)
    return with_retrieval(program, found.metadata.retrieve), found.metadata.recipe


def with_retrieval(program: IntentClassifier, count: int | None) -> IntentClassifier:
    """Make a program show only its `count` demonstrations nearest to the query; None shows all. Returns the program."""
    if count:
        program.nearest = Nearest(program.classify.predict.demos, count)
    return program
