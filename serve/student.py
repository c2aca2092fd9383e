"""The pair that `optimize` chose, checked, and the engine that serves its weights."""

import os
from dataclasses import dataclass
from pathlib import Path

from serve.classifier import Classifier
from stages.parts import paths
from stages.parts.calibration import Calibration, load_calibration
from stages.parts.errors import UserError
from stages.parts.params import Params
from stages.parts.program_file import Sidecar, load_program, load_sidecar
from stages.parts.records import file_sha256, folder_sha256
from stages.parts.students import base_engine, shares_an_engine, tuned_engine
from stages.parts.vllm_server import Engine, served_name

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
    calibration = load_calibration(paths.CALIBRATION)
    check_pair(sidecar, calibration, params.profile)
    program = load_program(paths.PROGRAM, sidecar.labels, sidecar.instructions, sidecar.style)

    base, adapter = Path(sidecar.base), Path(sidecar.adapter)
    name = served_name(adapter.name, adapter)
    if params.engine.api_base:
        api_base, key, engine = params.engine.api_base.rstrip("/"), os.environ.get(ENGINE_KEY, ""), None
    else:
        beside = shares_an_engine(adapter, params)
        engine = base_engine(base, {adapter.name: adapter}, params) if beside else tuned_engine(base, adapter, name, params)
        api_base, key = engine.served.api_base, engine.served.key
    return Student(Classifier(program, sidecar, calibration, name), engine, api_base, key)


def check_pair(sidecar: Sidecar, calibration: Calibration, profile: str) -> None:
    """Raise UserError where weights, program or calibration are not those that were chosen together, for this profile."""
    if sidecar.profile != profile:
        raise UserError(f"{paths.SIDECAR} is of profile {sidecar.profile}, params.yaml wants {profile}: run `dvc repro`")
    for folder, expected in ((sidecar.base, sidecar.base_sha256), (sidecar.adapter, sidecar.adapter_sha256)):
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is missing: run `dvc repro` or `dvc checkout`")
        if folder_sha256(Path(folder)) != expected:
            raise UserError(f"{folder} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")
    if not paths.PROGRAM.is_file() or file_sha256(paths.PROGRAM) != sidecar.program_sha256:
        raise UserError(f"{paths.PROGRAM} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")
    if (calibration.adapter_sha256, calibration.program_sha256) != (sidecar.adapter_sha256, sidecar.program_sha256):
        raise UserError(f"{paths.CALIBRATION} is of another pair than {paths.SIDECAR}: run `dvc repro calibrate`")
