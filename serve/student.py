"""The pair that `optimize` chose, checked, and the engine that serves its weights."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from serve.classifier import Classifier
from stages.parts.engines.engine import Engine, RunningEngine, ServedModel, served_name
from stages.parts.engines.http_client import EngineClient, EngineError, EngineTimeout
from stages.parts.engines.kinds import KINDS
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.calibration import Calibration, load_calibration
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, folder_sha256
from stages.parts.run.params import Params
from stages.parts.students.serving import base_engine, shares_an_engine, tuned_engine
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar

ENGINE_KEY = "ENGINE_API_KEY"
# an engine names its models at once, however busy it is; Ray's proxy holds every request while no replica is there
LISTING_S = 5


@dataclass(frozen=True)
class ServedStudent:
    """A classifier, and the engine to ask."""

    classifier: Classifier
    engine: Engine


def load_served_student(params: Params, base_there: str | None = None) -> ServedStudent:
    """Load and check everything that `make serve` needs; raises UserError where something is missing or does not belong
    together.

    `base_there`: the model of the engine at `engine.api_base`, where it wants its adapters asked for as BASE:ADAPTER.
    """
    pair = load_sidecar(paths.SIDECAR)
    calibration = load_calibration(paths.CALIBRATION)
    check_base(pair, params.profile)
    check_pair(pair, calibration)
    program = load_program(paths.PROGRAM, pair.labels, pair.instructions, pair.style)

    base, checkpoint = Path(pair.base), Path(pair.checkpoint)
    name = served_name(checkpoint.name, checkpoint)
    engine: Engine
    if params.engine.api_base:
        name = f"{base_there}:{name}" if base_there else name
        engine = engine_elsewhere(params, {checkpoint.name: name})
    elif shares_an_engine(checkpoint, params):
        engine = base_engine(base, {checkpoint.name: checkpoint}, params)
        name = engine.served.names[checkpoint.name]
    else:
        engine = tuned_engine(base, checkpoint, name, params)
    return ServedStudent(
        Classifier(ProgramRequests(program, engine.served.kind, name, pair.max_tokens), calibration), engine
    )


def engine_elsewhere(params: Params, names: dict[str, str]) -> RunningEngine:
    """The engine at `engine.api_base`, which serves `names`; its key is in ENGINE_API_KEY."""
    assert params.engine.api_base
    api_base, key = params.engine.api_base.rstrip("/"), os.environ.get(ENGINE_KEY, "")
    return RunningEngine(ServedModel(api_base, names, key, KINDS[params.engine.kind]))


def check_base(pair: Sidecar, profile: str) -> None:
    """Raise UserError where the pair is of another profile, or its base is not the one it was made with."""
    if pair.profile != profile:
        raise UserError(f"{paths.SIDECAR} is of profile {pair.profile}, params.yaml wants {profile}: run `dvc repro`")
    check_folder(Path(pair.base), pair.base_sha256)


def check_pair(pair: Sidecar, calibration: Calibration, root: Path = Path()) -> None:
    """Raise UserError where weights, program or calibration of the repository at `root` are not those that were chosen
    together.
    """
    check_folder(root / pair.checkpoint, pair.checkpoint_sha256)
    program = root / paths.PROGRAM
    if not program.is_file() or file_sha256(program) != pair.program_sha256:
        raise UserError(f"{program} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")
    if (calibration.checkpoint_sha256, calibration.program_sha256) != (pair.checkpoint_sha256, pair.program_sha256):
        raise UserError(
            f"{root / paths.CALIBRATION} is of another pair than {paths.SIDECAR}: run `dvc repro calibrate`"
        )


def check_present(folder: Path) -> None:
    """Raise UserError where a folder that DVC keeps is not there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: run `dvc repro` or `dvc checkout`")


def check_folder(folder: Path, expected: str) -> None:
    check_present(folder)
    if folder_sha256(folder) != expected:
        raise UserError(f"{folder} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")


async def pass_a_query(student: ServedStudent, client: EngineClient) -> None:
    """Raise EngineError unless the engine serves the student's weights and a query gets a label."""
    name = student.classifier.model
    try:
        async with asyncio.timeout(LISTING_S):
            served = await client.models()
    except TimeoutError:
        raise EngineTimeout(f"the engine did not name its models within {LISTING_S} s") from None
    if name not in served:
        raise EngineError(
            f"it serves {', '.join(served)}, not {name}: start it with --served-model-name {name}, on the weights "
            f"of that hash"
        )
    student.classifier.answer(await client.complete(student.classifier.trial()))
