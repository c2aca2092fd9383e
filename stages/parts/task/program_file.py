"""Saving and loading an optimised program with what its JSON lacks.

DSPy's program JSON holds instructions and demonstrations only, and loads onto another signature without an error. The
sidecar beside it says which labels, style, prompt format and weights it belongs to, and is checked at load.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import dspy
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.run.errors import UserError
from stages.parts.run.files import fingerprint, read_json, write_json
from stages.parts.run.params import Style
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import StudentFormat


class Sidecar(BaseModel):
    """The pair that `optimize` chose: the tuned student's `checkpoint` (an adapter's folder, or a whole model's) and
    the `program`, with what both belong to. Hashes of folders are over all their files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    labels: list[str]
    instructions: str
    style: Style
    program: Literal["plain", "optimized"]
    program_sha256: str
    prompt_format: str
    max_tokens: int
    trial_tokens: str | None = None  # the fingerprint of the trial query's prompt as token ids, in training's tokenizer
    base: str
    base_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    dspy_version: str
    dev_accuracy: float


def token_fingerprint(ids: Sequence[int]) -> str:
    return fingerprint(" ".join(map(str, ids)))


def program_state(program: IntentClassifier) -> str:
    """The program's JSON as a string: equal strings are equal prompts."""
    return json.dumps(program.dump_state(), indent=2, ensure_ascii=False) + "\n"


def save_program(program: IntentClassifier, path: Path) -> None:
    """Write a program's JSON, which DSPy's own `load` reads, too."""
    # `load` wants versions to compare with its own; Python's would make the file another one on another machine.
    metadata = {"dependency_versions": {"dspy": dspy.__version__}}
    write_json(path, program.dump_state() | {"metadata": metadata})


def save_sidecar(sidecar: Sidecar, path: Path) -> None:
    write_json(path, sidecar.model_dump())


def load_sidecar(path: Path) -> Sidecar:
    """Read a sidecar; raises UserError where it is missing, or from another version of this project or of DSPy."""
    try:
        sidecar = Sidecar.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}: run `dvc repro optimize`"
        ) from None
    if sidecar.dspy_version != dspy.__version__:
        raise UserError(
            f"{path} was made with DSPy {sidecar.dspy_version}, this is {dspy.__version__}: run `dvc repro optimize`"
        )
    if sidecar.prompt_format != StudentFormat.version:
        raise UserError(
            f"{path} wants prompts of {sidecar.prompt_format}, not {StudentFormat.version}: run `dvc repro optimize`"
        )
    return sidecar


def load_program(path: Path, labels: list[str], instructions: str, style: Style) -> IntentClassifier:
    """Load a program's JSON; raises UserError where it was made for another style, instructions or labels."""
    program = IntentClassifier(labels, instructions, style)
    own = {name: state["signature"] for name, state in program.dump_state().items()}
    saved = read_json(path)
    if {name: state.get("signature") for name, state in saved.items() if name != "metadata"} != own:
        raise UserError(f"{path} is a program of another style, other instructions or labels: run `dvc repro optimize`")
    program.load_state(saved)
    return program
