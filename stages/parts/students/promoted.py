"""Which student is promoted: `serve.model: auto` serves it instead of the run's choice.

models/promoted holds a folder of each promoted student, and promoted.json, which names them, the served one last.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json

HISTORY = paths.PROMOTED / "promoted.json"


class Promotions(BaseModel):
    """The promoted students' folders in models/promoted, oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: list[str]


def read_promotions() -> Promotions:
    """Return what was promoted; raises UserError if the file is not this project's."""
    if not HISTORY.exists():
        return Promotions(names=[])
    try:
        return Promotions.model_validate(read_json(HISTORY))
    except ValidationError as error:
        raise UserError(f"{HISTORY}: {error.errors()[0]['msg']}: remove it, and promote a student again") from None


def promoted_folder() -> Path | None:
    """Return the folder of the promoted student, None if the run's own choice is to be served."""
    names = read_promotions().names
    return paths.PROMOTED / names[-1] if names else None
