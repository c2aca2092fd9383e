"""Export the student that `optimize` chose as one folder for vLLM, transformers and the hub: model, program,
calibration, request, card.

python -m serve.export [--to models/export]
"""

import argparse
import shutil
from pathlib import Path

from serve.student import check_base, check_pair
from stages.parts.engines.engine import served_name
from stages.parts.engines.kinds import KINDS
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.calibration import load_calibration
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_folder, write_json
from stages.parts.run.params import load_params
from stages.parts.students.merge import export
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar

REQUEST = "request.json"


def request_form(pair: Sidecar, name: str) -> dict[str, object]:
    """The body of the program's requests to a vLLM that serves the weights under a name, with {query} in the query's
    place.
    """
    program = load_program(paths.PROGRAM, pair.labels, pair.instructions, pair.style)
    return ProgramRequests(program, KINDS["vllm"], name, pair.max_tokens).body("{query}")


def check_target(to: Path) -> None:
    """Raise UserError for what a new export must not replace."""
    here = Path.cwd()
    if to in (here, *here.parents):
        raise UserError(f"{to} holds the current folder, which would be replaced: name a folder of its own")
    if to.exists() and not all((to / file).is_file() for file in (REQUEST, paths.SIDECAR.name)):
        raise UserError(
            f"{to} is there and no earlier export, which alone would be replaced: name a folder that is not there"
        )


def export_pair(to: Path) -> None:
    """Write the folder, whole or not at all; raises UserError where something is missing or does not belong together,
    and for a target that would lose other files."""
    to = to.resolve()
    check_target(to)
    pair = load_sidecar(paths.SIDECAR)
    check_base(pair, load_params().profile)
    check_pair(pair, load_calibration(paths.CALIBRATION))
    checkpoint = Path(pair.checkpoint)
    name = served_name(checkpoint.name, checkpoint)
    if not paths.MODEL_CARD.is_file() or f"--served-model-name {name}\n" not in paths.MODEL_CARD.read_text(
        encoding="utf-8"
    ):
        raise UserError(f"{paths.MODEL_CARD} is missing or of another student: run `dvc repro`")
    with whole_folder(to) as draft:
        export(Path(pair.base), checkpoint, draft)
        for file in (paths.PROGRAM, paths.SIDECAR, paths.CALIBRATION):
            shutil.copyfile(file, draft / file.name)
        shutil.copyfile(paths.MODEL_CARD, draft / "README.md")
        write_json(draft / REQUEST, request_form(pair, name))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--to",
        type=Path,
        default=paths.EXPORT,
        help=f"folder to write; replacing an earlier export (default: {paths.EXPORT})",
    )
    to: Path = parser.parse_args().to
    with command("export", OSError):
        export_pair(to)
    print(f"written to {to}: its README.md says how to serve it; `hf upload NAME {to}` publishes it")


if __name__ == "__main__":
    main()
