"""A teacher's prompt that gold rows chose: a DSPy program's JSON, with what it was made from. data/prompts/PROFILE.json

`make tune-teacher` writes it, people review it, Git keeps it, and stage `teacher` asks with it; where there is none,
the teacher is asked with the labels and their descriptions. It holds gold texts: as demonstrations, and where an
optimiser quotes them.
"""

from pathlib import Path
from typing import Any

from dspy.utils.saving import get_dependency_versions
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from stages.parts.run.params import PromptRecipe
from stages.parts.run.paths import PROMPTS
from stages.parts.task.program import IntentClassifier
from stages.parts.task.retrieval import Nearest

OPTIMISED: tuple[PromptRecipe, ...] = ("gepa", "miprov2")  # their answers to gold rows are no test of them
WAY_OUT = "run `make tune-teacher` again, or remove the file to do without"


class Origin(BaseModel):
    """What a prompt was made from: it is one for these labels, and this model, alone. `retrieve`: how many of the
    demonstrations are shown, the nearest to the query; None: all."""

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
    """DSPy's JSON, as far as it matters here."""

    model_config = ConfigDict(extra="forbid")

    predictor: PredictorState = Field(alias="classify.predict")
    metadata: Metadata


def prompt_path(profile: str) -> Path:
    return PROMPTS / f"{profile}.json"


def save_prompt(program: IntentClassifier, origin: Origin, path: Path) -> None:
    versions = get_dependency_versions()
    metadata = Metadata(dependency_versions=versions, **origin.model_dump())
    write_json(path, {**program.dump_state(), "metadata": metadata.model_dump()})


def load_prompt(path: Path, plain: IntentClassifier, wanted: dict[str, Any]) -> tuple[IntentClassifier, PromptRecipe]:
    """The program of a file and how it was made. `plain` is one for the same labels; `wanted` are the values of
    `Origin` that it must have.

    Raises UserError where the file is none, names other labels, or was made from something else than is in force.
    """
    saved = read_json(path)
    try:
        found = PromptFile.model_validate(saved)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}: {WAY_OUT}"
        ) from None
    for name, value in wanted.items():
        if getattr(found.metadata, name) != value:
            raise UserError(f"{path} was tuned for {'other' if name.endswith('s') else 'another'} {name}: {WAY_OUT}")
    prompt = found.predictor.signature.instructions
    if unnamed := [label for label in plain.labels if label not in prompt]:
        raise UserError(f"{path}: its instructions do not name the label {unnamed[0]}: name it, or {WAY_OUT}")
    if strange := [demo.label for demo in found.predictor.demos if demo.label not in plain.labels]:
        raise UserError(
            f"{path}: a demonstration has the label {strange[0]!r}, which there is not: mend it, or {WAY_OUT}"
        )
    program = plain.deepcopy()
    if found.predictor.signature.fields != next(iter(program.dump_state().values()))["signature"]["fields"]:
        raise UserError(f"{path} is a program with other fields: {WAY_OUT}")
    program.load_state(saved)
    return shown_by_nearness(program, found.metadata.retrieve), found.metadata.recipe


def shown_by_nearness(program: IntentClassifier, count: int | None) -> IntentClassifier:
    """The program, which shows only the `count` of its demonstrations that are nearest to a query, if a count is
    given.
    """
    if count:
        program.nearest = Nearest(program.classify.predict.demos, count)
    return program
