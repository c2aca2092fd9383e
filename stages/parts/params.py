"""Typed parameters: params.yaml, checked. `python -m stages.parts.params` checks it and prints what is in force."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.parts.errors import UserError

Source = Literal["sample", "csv", "url", "hub"]
Style = Literal["direct", "chain_of_thought"]
Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(gt=0, lt=65536)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Block(BaseModel):
    """No misspelt keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Raw(Block):
    source: Source | None
    train: str
    test: str
    text_column: str
    label_column: str


class Split(Block):
    gold: Positive


class Program(Block):
    style: Style | None
    instructions: Annotated[str, Field(min_length=1)]


def as_written(value: Any) -> Any:
    """YAML, and `-S sft.labels=true` with it, reads the word true as a boolean."""
    return "true" if value is True else value


class Sft(Block):
    labels: Annotated[Literal["teacher", "true"], BeforeValidator(as_written)]
    prune: bool


class Train(Block):
    method: Literal["lora", "full", "qlora"]


class Lora(Block):
    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    epochs: Positive


class Optimize(Block):
    checkpoints: Positive
    bootstrapped_demos: Annotated[int, Field(ge=1)]
    labeled_demos: Annotated[int, Field(ge=1)]
    candidate_programs: Annotated[int, Field(ge=0)]


class Calibrate(Block):
    precision: Rate


class Report(Block):
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Runtime(Block):
    parallel: Literal["none", "ddp", "fsdp", "zero3"]
    rows_at_once: Positive | None
    weights: Literal["merged", "adapter"]
    threads: Positive
    port: Port | None
    engine_start_s: Positive
    kv_cache_gib: Positive


class Serve(Block):
    host: str
    port: Port
    queue: Positive
    timeout_s: Positive


class RunningEngine(Block):
    api_base: Annotated[str, Field(pattern=r"^https?://.+/v1/?$")] | None


class LinearTeacher(Block):
    kind: Literal["linear"]


class VllmTeacher(Block):
    kind: Literal["vllm"]
    model: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    max_tokens: Positive
    max_model_len: Positive


class EndpointTeacher(Block):
    kind: Literal["endpoint"]
    model: str
    api_base: str | None
    max_tokens: Positive


class TinyStudent(Block):
    kind: Literal["tiny"]
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)]
    layers: Positive
    vocabulary: Annotated[int, Field(ge=512)]
    epochs: Positive
    learning_rate: Rate


class HubStudent(Block):
    kind: Literal["hub"]
    model: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    max_model_len: Positive


Teacher = Annotated[LinearTeacher | VllmTeacher | EndpointTeacher, Field(discriminator="kind")]
Student = Annotated[TinyStudent | HubStudent, Field(discriminator="kind")]


class ProfileSft(Block):
    dev: Positive
    optimizer_val: Positive
    optimizer_train: Positive
    batch: Positive
    learning_rate: Rate


class Profile(Block):
    source: Source
    style: Style
    teacher: Teacher
    student: Student
    sft: ProfileSft


class Params(Block):
    """All of params.yaml. `own` is the chosen profile's block; `source` and `style` are what is in force."""

    profile: str
    seed: Annotated[int, Field(ge=0)]
    top_n: Annotated[int, Field(ge=2)]
    raw: Raw
    split: Split
    program: Program
    sft: Sft
    train: Train
    lora: Lora
    optimize: Optimize
    calibrate: Calibrate
    report: Report
    runtime: Runtime
    serve: Serve
    engine: RunningEngine
    profiles: dict[str, Profile]

    @property
    def own(self) -> Profile:
        return self.profiles[self.profile]

    @property
    def source(self) -> Source:
        return self.raw.source or self.own.source

    @property
    def style(self) -> Style:
        return self.program.style or self.own.style


def parse_params(values: Any, where: str = "params.yaml") -> Params:
    """Check a parsed params.yaml; raises UserError that names the first wrong key, its value and what is wanted."""
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        tags = {"linear", "vllm", "endpoint", "tiny", "hub"}  # pydantic names the union member in the path; the user does not
        key = ".".join(str(part) for part in first["loc"] if part not in tags) or "the file"
        reason = {"extra_forbidden": "there is no such parameter", "missing": "it is missing"}.get(first["type"], first["msg"])
        shown = "" if first["type"] in ("extra_forbidden", "missing") else f" (got {first['input']!r})"
        raise UserError(f"{where}: {key}: {reason}{shown}") from None
    if params.profile not in params.profiles:
        raise UserError(f"{where}: profile: no profile is called {params.profile!r}; there are {', '.join(params.profiles)}")
    return params


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml of the repository a stage runs in."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_params(values, str(path))


if __name__ == "__main__":
    try:
        checked = load_params()
    except UserError as error:
        sys.exit(str(error))
    own = checked.own
    print(
        f"profile {checked.profile}: source {checked.source}, style {checked.style}, {own.teacher.kind} teacher, {own.student.kind} student"
    )
