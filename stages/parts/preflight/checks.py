"""Check the machine for the profile in params.yaml: one line a check, what was found or what to do. `make check-setup`

python -m stages.parts.preflight.checks
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx
from huggingface_hub.utils import disable_progress_bars

from stages.parts.engines.engine import Precision
from stages.parts.engines.layout import plan, shape_of
from stages.parts.engines.sglang import INSTALL as INSTALL_SGLANG
from stages.parts.engines.sglang import PYTHON as SGLANG_PYTHON
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.machine import GIB, Gpu, visible_gpus
from stages.parts.run.params import (
    AnyWeights,
    HostedTeacherSettings,
    HubWeights,
    Params,
    PretrainedStudentSettings,
    ServedTeacherSettings,
    load_params,
)
from stages.parts.run.paths import cache
from stages.parts.teachers.hosted import KEY_NAME, hosted_model
from stages.parts.weights.fetch import fetch, is_fetched
from stages.parts.weights.hub import preview

SKIP = "SKIP_PREFLIGHT"  # set by `make plan` and the like, which need no GPU for a profile that has one
BFLOAT16 = (8, 0)  # the compute capability that has it natively: engines start in it
NEWEST_DRIVERS = {12: 525, 13: 580}  # CUDA's major version -> the first driver that runs it
LEAST_DISK = 2 * GIB  # of the embedded profile
WAIT_S = 10
SEES_CUDA = (
    "import json, torch; count = torch.cuda.is_available() and torch.cuda.device_count(); "
    "print(json.dumps([torch.__version__, torch.version.cuda, count]))"
)


@dataclass(frozen=True)
class Result:
    """One check: what it found or, if it failed, what to do about it."""

    name: str
    says: str
    failed: bool = False


@dataclass(frozen=True)
class ModelFiles:
    """A model's files without its weights, the weights' bytes, and how many of these are still to be downloaded."""

    folder: Path
    weight_bytes: int
    missing_bytes: int


class Preflight:
    """The checks of one run of them. Later ones use what earlier ones found, and are left out where that is missing."""

    def __init__(self, params: Params, scratch: Path) -> None:
        self.params = params
        self.scratch = scratch
        self.gpus: list[Gpu] = []
        self.files: dict[str, ModelFiles] = {}

    def results(self) -> Iterator[Result]:
        for name, check in self.checks():
            try:
                yield Result(name, check())
            except UserError as error:
                yield Result(name, str(error), failed=True)

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield the checks that the profile needs: what is at hand first, then the network, then what fits where."""
        params = self.params
        yield "packages", self.packages
        if params.needs_gpus:
            yield "GPUs", self.find_gpus
            yield "CUDA", self.cuda
            if self.gpus:
                yield "GPU memory", self.free_memory
        for role, weights in models(params).items():
            yield f"{role}'s weights", partial(self.look_at, role, weights)
        if isinstance(params.teacher, HostedTeacherSettings):
            yield "teacher's endpoint", self.endpoint
        for role in [role for role in engines(params) if self.gpus and role in self.files]:
            yield f"{role}'s layout", partial(self.layout, role)
        if "student" in self.files:
            yield "chat template", self.chat_template
        yield "disk", self.disk

    def packages(self) -> str:
        """Optional packages that settings want."""
        train, runtime = self.params.train, self.params.runtime
        if train.method == "qlora" and not find_spec("bitsandbytes"):
            raise UserError("train.method qlora needs bitsandbytes: .venv/bin/pip install bitsandbytes")
        if runtime.parallel == "zero3" and not find_spec("deepspeed"):
            raise UserError("runtime.parallel zero3 needs DeepSpeed: .venv/bin/pip install deepspeed")
        kinds = {self.params.engine.kind, getattr(self.params.teacher, "kind", "")}
        if "sglang" in kinds and not SGLANG_PYTHON.is_file():
            raise UserError(f"SGLang is not installed: {INSTALL_SGLANG}")
        return f"Python {sys.version.split()[0]}, profile {self.params.profile}"

    def find_gpus(self) -> str:
        found = visible_gpus()
        for gpu in found:
            if gpu.capability < BFLOAT16:
                capability = ".".join(map(str, gpu.capability))
                raise UserError(
                    f"{gpu.name} has compute capability {capability}, and engines need 8.0 (Ampere) or later"
                )
        if isinstance(teacher := self.params.teacher, ServedTeacherSettings):
            Precision(teacher.quantization, teacher.kv_cache_dtype).check(found)
        self.gpus = found
        return ", ".join(f"{gpu.name} ({gpu.memory / GIB:.0f} GiB)" for gpu in found)

    def cuda(self) -> str:
        """What torch sees, in a process of its own: CUDA can't be let go of by this one."""
        done = subprocess.run([sys.executable, "-c", SEES_CUDA], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"torch can't be imported: {done.stderr.strip().splitlines()[-1:]}: run `make setup` again")
        version, cuda, count = json.loads(done.stdout.splitlines()[-1])
        if not cuda:
            raise UserError(f"torch {version} has no CUDA: rm -rf .venv && HARDWARE=gpu make setup")
        driver = self.gpus[0].driver if self.gpus else "unknown"
        if not count:
            needed = NEWEST_DRIVERS.get(int(cuda.split(".")[0]))
            raise UserError(
                f"torch sees no GPU with CUDA {cuda} and driver {driver}: install driver {needed or 'for it'} or later"
            )
        if self.gpus and count != len(self.gpus):
            raise UserError(f"torch sees {count} GPUs and nvidia-smi {len(self.gpus)}: check CUDA_VISIBLE_DEVICES")
        return f"torch {version}, CUDA {cuda}, driver {driver}, {count} GPUs"

    def free_memory(self) -> str:
        share = self.params.runtime.gpu_memory_share
        for gpu in self.gpus:
            if gpu.free < share * gpu.memory:
                raise UserError(
                    f"GPU {gpu.index} has {gpu.free / GIB:.0f} of {gpu.memory / GIB:.0f} GiB free, and engines take "
                    f"{share:.0%}: stop what else runs there (nvidia-smi lists it), or set runtime.gpu_memory_share to "
                    f"{max(0.1, gpu.free / gpu.memory - 0.02):.2f}"
                )
        return f"{min(gpu.free for gpu in self.gpus) / GIB:.0f} GiB free on each"

    def look_at(self, role: str, weights: AnyWeights) -> str:
        """Find the model's files, or the hub's list of them, and whether its licence was accepted."""
        if is_fetched(weights):
            folder = fetch(weights)
            stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            self.files[role] = ModelFiles(folder, stored, 0)
            return f"{weights.model_id}: {stored / 1e9:.1f} GB, here already"
        if not isinstance(weights, HubWeights):
            return f"{weights.model_id}: in a package of the index, to be downloaded"
        folder = self.scratch / role
        stored = preview(weights.repository, weights.revision, folder)
        self.files[role] = ModelFiles(folder, stored, stored)
        return f"{weights.model_id}: {stored / 1e9:.1f} GB to download"

    def endpoint(self) -> str:
        """Ask the endpoint for its models, which costs nothing; one that has no such list is not held against it."""
        assert isinstance(self.params.teacher, HostedTeacherSettings)
        served = hosted_model(self.params.teacher)
        try:
            answer = httpx.get(
                f"{served.api_base}/models", headers={"Authorization": f"Bearer {served.key}"}, timeout=WAIT_S
            )
        except httpx.HTTPError as error:
            raise UserError(
                f"{served.api_base} can't be reached ({str(error) or type(error).__name__}): check teacher.api_base, "
                f"the network and HTTPS_PROXY"
            ) from None
        if answer.status_code in (401, 403):
            raise UserError(f"{served.api_base} refuses the key: check {KEY_NAME}")
        return f"{served.api_base} answers"

    def layout(self, role: str) -> str:
        """How the model lies over the GPUs, from its configuration alone."""
        files, teacher = self.files[role], self.params.teacher
        quantization = (
            teacher.quantization if role == "teacher" and isinstance(teacher, ServedTeacherSettings) else None
        )
        if not (files.folder / "config.json").is_file():
            raise UserError("the repository has no config.json: choose a causal language model in safetensors")
        config = json.loads((files.folder / "config.json").read_text())
        shape = shape_of(config, files.weight_bytes, quantization, role)
        found = plan(shape, [gpu.memory for gpu in self.gpus], self.params.runtime.gpu_memory_share)
        return f"tensor parallel {found.tensor}, pipeline parallel {found.pipeline}, {found.copies} copies"

    def chat_template(self) -> str:
        """The check of stage base: training and serving send the same tokens."""
        from transformers import AutoTokenizer  # seconds, which the other checks need not wait for

        from stages.parts.students.chat_template import check_template
        from stages.parts.task.program import IntentClassifier

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.files["student"].folder)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"the student has no tokenizer that transformers reads: {str(error).splitlines()[0]}"
            ) from None
        if tokenizer.chat_template is None:
            raise UserError("the student has no chat template: choose an instruction-tuned model")
        program = IntentClassifier(["one_label", "another_label"], "Classify.", self.params.program.style)
        check_template(tokenizer, program, "the student")
        return "training and serving send the same tokens"

    def disk(self) -> str:
        """Room for downloads, and for the student's base, merged and trained weights."""
        student, train = self.files.get("student"), self.params.train
        copies = 2 + (train.epochs if train.method == "full" else 1)
        needed = sum(files.missing_bytes for files in self.files.values())
        needed += copies * student.weight_bytes if student else LEAST_DISK
        place = cache().resolve()
        free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
        if free < needed:
            raise UserError(
                f"{free / GIB:.0f} GiB are free at {place}, and the run needs {needed / GIB:.0f}: free some space"
            )
        return f"{free / GIB:.0f} GiB free, {needed / GIB:.0f} needed"


def models(params: Params) -> dict[str, AnyWeights]:
    """Return the weights that the profile downloads, by what they are for."""
    found: dict[str, AnyWeights] = {}
    if isinstance(params.teacher, ServedTeacherSettings):
        found["teacher"] = params.teacher.weights
    if isinstance(params.student, PretrainedStudentSettings):
        found["student"] = params.student.weights
    return found


def engines(params: Params) -> list[str]:
    """Return the models that an engine serves on GPUs."""
    return [role for role in models(params) if role == "teacher" or params.student_on_gpus]


def check_setup(params: Params) -> Iterator[Result]:
    """Yield the checks' results as they come."""
    disable_progress_bars()  # of small files
    with tempfile.TemporaryDirectory() as scratch:
        yield from Preflight(params, Path(scratch)).results()


def require_setup(params: Params) -> None:
    """Raise UserError for a machine that can't run a profile with GPUs, before its first stage."""
    if not params.needs_gpus or SKIP in os.environ:
        return
    if failed := [result for result in check_setup(params) if result.failed]:
        lines = "".join(f"\n  {result.name}: {result.says}" for result in failed)
        raise UserError(
            f"this machine can't run profile {params.profile}:{lines}\n"
            f"`make check-setup` checks again; {SKIP}=1 goes on all the same"
        )


def main() -> None:
    with command("check-setup"):
        failed = 0
        for result in check_setup(load_params()):
            print(f"{'FAILED' if result.failed else 'ok':7}{result.name}: {result.says}", flush=True)
            failed += result.failed
        if failed:
            raise UserError(f"{failed} of the checks failed")


if __name__ == "__main__":
    main()
