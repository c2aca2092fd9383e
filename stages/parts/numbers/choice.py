"""Which contender is served: models/served.json of stage `calibrate`, which `serve.model: auto` reads."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json

Contender = Literal["linear", "encoder", "decoder"]
CHEAPEST_FIRST: tuple[Contender, ...] = get_args(Contender)
# Contender -> its folder, its predictions of held-out rows, its calibration.
IN_PROCESS: dict[Contender, tuple[Path, Path, Path]] = {
    "linear": (paths.LINEAR, paths.LINEAR_HELD_OUT, paths.LINEAR_CALIBRATION),
    "encoder": (paths.ENCODER, paths.ENCODER_HELD_OUT, paths.ENCODER_CALIBRATION),
}


class ServedChoice(BaseModel):
    """The contender to serve, the reason in one sentence, and the profile of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serve: Contender
    why: str
    profile: str


def load_choice(path: Path) -> ServedChoice:
    """Read the choice; raises UserError if it is missing or from another version of this project."""
    try:
        return ServedChoice.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}: run `dvc repro calibrate`") from None
