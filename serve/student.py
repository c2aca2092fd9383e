"""The pair that `optimize` chose, checked, and the engine that serves its weights."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from serve.classifier import Classifier
from stages.parts import paths
from stages.parts.calibration import load_calibration
from stages.parts.errors import UserError
from stages.parts.params import Params
from stages.parts.program_file import Sidecar, load_program, load_sidecar
from stages.parts.records import folder_sha256
from stages.parts.vllm_server import Engine, is_adapter, served_name, student_engine

ENGINE_KEY = "ENGINE_API_KEY"


@dataclass(frozen=True)
class Student:
    """A classifier, and the engine to ask: one to start (`engine`), or, where that is None, one that runs at `api_base` already."""

    classifier: Classifier
    engine: Engine | None
    api_base: str
    key: str


def load_student(params: Params) -> Student:
    """Load and check everything that `make serve` needs; raises UserError where something is missing or does not belong together."""
    sidecar = load_sidecar(paths.SIDECAR)
    check_weights(sidecar)
    program = load_program(paths.PROGRAM, sidecar.labels, sidecar.instructions, sidecar.style)
    calibration = load_calibration(paths.CALIBRATION)

    base, adapter = Path(sidecar.base), Path(sidecar.adapter)
    name = served_name(adapter.name, adapter)
    if params.engine.api_base:
        api_base, key, engine = params.engine.api_base.rstrip("/"), os.environ.get(ENGINE_KEY, ""), None
    else:
        if not is_adapter(adapter):
            engine = student_engine(adapter, {}, params, name)
        elif params.serve.weights == "merged":
            engine = merged_engine(base, adapter, name, params)
        else:
            engine = adapter_engine(base, adapter, params)
        api_base, key = engine.served.api_base, engine.served.key
    return Student(Classifier(program, sidecar, calibration, name), engine, api_base, key)


def check_weights(sidecar: Sidecar) -> None:
    """Raise UserError where base or adapter are not those that the program was chosen with."""
    for folder, expected in ((sidecar.base, sidecar.base_sha256), (sidecar.adapter, sidecar.adapter_sha256)):
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is missing: run `dvc repro` or `dvc checkout`")
        if folder_sha256(Path(folder)) != expected:
            raise UserError(f"{folder} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")


def adapter_engine(base: Path, adapter: Path, params: Params) -> Engine:
    return student_engine(base, {adapter.name: adapter}, params)


def merged_engine(base: Path, adapter: Path, name: str, params: Params) -> Engine:
    """An engine for the adapter folded into its base, under the adapter's name: more queries a second than with the adapter beside it."""
    merged = paths.cache() / "merged" / f"{served_name('base', base)}-{name}"
    if not merged.is_dir():
        from stages.parts.merge import merge_adapter  # here, since it imports torch, which is needed this once

        print(f"merging {adapter} into {base}", flush=True)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # the weights leave memory with the process
            pool.submit(merge_adapter, base, adapter, merged).result()
    return student_engine(merged, {}, params, name)
