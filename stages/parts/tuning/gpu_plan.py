"""What a profile with models on GPUs takes, from the models' configuration alone: nothing large is downloaded.

Labelling is bound by memory: in each step an engine reads all weights once, and every request in flight gets a token.
The shared prompt is in the prefix cache, so that prompts cost little.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.parts.engines.layout import Layout, ModelShape, plan, shape_of
from stages.parts.preflight.checks import engines, models
from stages.parts.run.errors import UserError
from stages.parts.run.machine import GIB, Gpu, visible_gpus
from stages.parts.run.params import AnyWeights, HubWeights, Params, Runtime, ServedTeacherSettings
from stages.parts.weights.fetch import fetch, is_fetched
from stages.parts.weights.hub import preview

# Bytes a second that a GPU reads from its memory, from NVIDIA's data sheets, by a part of nvidia-smi's name.
BANDWIDTHS = {"B200": 8e12, "H200": 4.8e12, "H100": 3.35e12, "A100": 2e12, "L40S": 0.86e12, "L4": 0.3e12, "A10": 0.6e12}
OTHER_BANDWIDTH = 1e12
USED_BANDWIDTH = 0.6  # share that engines reach
ASSUMED_GPU, ASSUMED_MEMORY = "A100", 80 * GIB  # if the plan is made on a machine without GPUs
ASSUMED_GPUS = (1, 2, 4, 8, 16, 32, 64)
ANSWER_TOKENS = 100  # of a teacher's reasoning and label
DOWNLOAD_PER_S = 100e6  # bytes
LOAD_PER_S = 1e9  # bytes that an engine loads, on top of
START_S = 90


@dataclass(frozen=True)
class PlannedModel:
    """A model that a run uses: bytes of its weights and of what is still to be downloaded; None if not known before."""

    name: str
    shape: ModelShape | None
    missing_bytes: int | None

    @property
    def start_s(self) -> float:
        return START_S + (self.shape.weight_bytes / LOAD_PER_S if self.shape else 0)


@dataclass(frozen=True)
class Machine:
    """GPUs to plan for: this machine's, or as many assumed ones as the model needs."""

    gpu: str
    memory: list[int]
    assumed: bool

    @property
    def bandwidth(self) -> float:
        return next((value for name, value in BANDWIDTHS.items() if name in self.gpu), OTHER_BANDWIDTH)


def planned_models(params: Params) -> dict[str, PlannedModel]:
    """Return the teacher and the student, as far as they are models with weights.

    Raises UserError if the hub can't be reached, or does not show a model.
    """
    teacher = params.teacher
    quantization = {"teacher": teacher.quantization} if isinstance(teacher, ServedTeacherSettings) else {}
    return {role: planned_model(weights, quantization.get(role)) for role, weights in models(params).items()}


def planned_model(weights: AnyWeights, quantization: str | None = None) -> PlannedModel:
    if is_fetched(weights):
        folder = fetch(weights)
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return PlannedModel(weights.model_id, shape_in(folder, stored, quantization, weights.model_id), 0)
    if not isinstance(weights, HubWeights):
        return PlannedModel(weights.model_id, None, None)  # a package's size is known once it is there
    with tempfile.TemporaryDirectory() as scratch:
        stored = preview(weights.repository, weights.revision, Path(scratch))
        shape = shape_in(Path(scratch), stored, quantization, weights.model_id)
    return PlannedModel(weights.model_id, shape, stored)


def shape_in(folder: Path, stored: int, quantization: str | None, name: str) -> ModelShape:
    return shape_of(json.loads((folder / "config.json").read_text()), stored, quantization, name)


def machine_for(shape: ModelShape, runtime: Runtime) -> tuple[Machine, Layout]:
    """Return this machine's GPUs, or else the fewest assumed ones that hold the model, and the layout on them.

    Raises UserError if the model fits on neither.
    """
    gpus: list[Gpu] = []
    try:
        gpus = visible_gpus()
    except UserError:
        for count in ASSUMED_GPUS:
            machine = Machine(ASSUMED_GPU, count * [ASSUMED_MEMORY], assumed=True)
            try:
                return machine, plan(shape, machine.memory, runtime.gpu_memory_share)
            except UserError:
                if count == ASSUMED_GPUS[-1]:
                    raise
    memory = [gpu.memory for gpu in gpus]
    return Machine(gpus[0].name, memory, assumed=False), plan(shape, memory, runtime.gpu_memory_share)


def engine_starts(params: Params) -> dict[str, int]:
    """Return how often each stage starts an engine in one run of the pipeline."""
    alone = params.runtime.weights == "merged" or params.train.method == "full"
    teacher = {"teacher": 1} if isinstance(params.teacher, ServedTeacherSettings) else {}
    return teacher | {"optimize": 1 + alone * params.optimize.checkpoints, "evaluate": 1 + alone}


def labelling_s(shape: ModelShape, layout: Layout, bandwidth: float, answers: int, max_in_flight: int) -> float:
    """Return the seconds in which so many answers are written, with `max_in_flight` requests to each copy."""
    step = shape.weight_bytes / layout.tensor / (USED_BANDWIDTH * bandwidth)
    return answers * ANSWER_TOKENS * step / (max_in_flight * layout.copies)


def gpu_plan(params: Params, answers: Mapping[str, int]) -> list[str]:
    """Return the plan in lines. `answers` are those that the teacher is to give, by the part of the rows.

    Raises UserError like `planned_models`, and if the teacher does not fit on this machine's GPUs.
    """
    planned = planned_models(params)
    lines = []
    seconds = {"downloads": 0.0, "engine starts": 0.0}
    for role, model in planned.items():
        size = "size not known before the download"
        if model.shape and model.missing_bytes is not None:
            there = f"{model.missing_bytes / 1e9:.1f} GB to download" if model.missing_bytes else "here already"
            size = f"{model.shape.weight_bytes / 1e9:.1f} GB in GPU memory, {there}"
            seconds["downloads"] += model.missing_bytes / DOWNLOAD_PER_S
        lines.append(f"{role:14}{model.name}: {size}")
        if model.shape and role in engines(params):
            machine, layout = machine_for(model.shape, params.runtime)
            gpus = f"{len(machine.memory)} x {machine.gpu}, {min(machine.memory) / GIB:.0f} GiB"
            where = f"no GPU here; assumed: {gpus}" if machine.assumed else gpus
            lines.append(
                f"{'':14}{where}: tensor parallel {layout.tensor}, pipeline parallel {layout.pipeline}, copies "
                f"{layout.copies}"
            )
            if role == "teacher":
                in_flight = params.runtime.max_in_flight
                total = sum(answers.values())
                seconds["labelling"] = labelling_s(model.shape, layout, machine.bandwidth, total, in_flight)
    starts = engine_starts(params)
    for stage, count in starts.items():
        model = planned["teacher" if stage == "teacher" else "student"]
        seconds["engine starts"] += count * model.start_s
    by_stage = ", ".join(f"{stage} {count}" for stage, count in starts.items())
    lines.append(f"{'engine starts':14}{sum(starts.values())}: {by_stage}")
    if "labelling" in seconds:
        by_part = ", ".join(f"{part} {count:,}" for part, count in answers.items())
        lines.append(f"{'answers':14}{sum(answers.values()):,} of about {ANSWER_TOKENS} tokens: {by_part}")
    total_s = sum(seconds.values())
    parts = ", ".join(f"{part} {duration(value)}" for part, value in seconds.items() if value)
    lines.append(f"{'time':14}about {duration(total_s)}: {parts}; training and scoring the student come on top")
    price = params.report.gpu_price_per_hour
    dollars = total_s / 3600 * price
    lines.append(f"{'price':14}about ${dollars:,.2f}, at ${price:,.2f} an hour (report.gpu_price_per_hour)")
    return lines


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
