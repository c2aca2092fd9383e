"""Export the student that `optimize` chose as one folder for vLLM, transformers and the hub: model, program,
calibration, request, card. Inside it, `encoder` is the encoder student, if the run has one, with its own card.

python -m serve.export [--to models/export]
"""

import argparse
import shutil
from pathlib import Path

from stages.parts.encoder.encoder import DESCRIPTION, MODEL, TOKENIZER
from stages.parts.engines.process import KINDS
from stages.parts.numbers.cards import pretrained
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_folder, write_json, write_text
from stages.parts.run.pages import filled_template
from stages.parts.run.params import Params, load_params
from stages.parts.students.footprint import folder_mb
from stages.parts.students.local import CALIBRATION, CARD, HELD_OUT, NOT_THE_STUDENT, beside, load_local
from stages.parts.students.pair import PAIR_FILES, load_pair
from stages.parts.students.weights import MODEL_FILES, export
from stages.parts.task.student_file import STUDENT, read_student_file

REQUEST = "request.json"
OTHER_TOKENIZER_FILES = ("vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
ENCODER = "encoder"  # the encoder student's folder in the export
ENCODER_FILES = (MODEL, TOKENIZER, DESCRIPTION, STUDENT)
STUDENT_CARD = Path(__file__).parent / "templates/student_card.md"


def check_target(to: Path) -> None:
    """Raise UserError for what a new export must not replace."""
    here = Path.cwd()
    if to in (here, *here.parents):
        raise UserError(f"{to} holds the current folder, which would be replaced: name a folder of its own")
    if to.exists() and not all((to / file).is_file() for file in (REQUEST, paths.SIDECAR.name)):
        raise UserError(
            f"{to} is there and no earlier export, which alone would be replaced: name a folder that is not there"
        )


def add_encoder(params: Params, draft: Path) -> None:
    """Write the run's encoder student into a draft of the export, if there is one; raises UserError if its files do not
    belong together.
    """
    if read_student_file(paths.ENCODER) is None:
        return
    found = load_local(paths.ENCODER)
    folder = draft / ENCODER
    folder.mkdir()
    for file in ENCODER_FILES:
        shutil.copyfile(paths.ENCODER / file, folder / file)
    for file in (CALIBRATION, HELD_OUT):
        shutil.copyfile(beside(paths.ENCODER, file), folder / file)
    context = {
        "student": found.student,
        "calibration": found.calibration,
        "profile": params.profile,
        "pretrained": pretrained(params),
    }
    write_text(folder / CARD, filled_template(STUDENT_CARD, context, {}))


def export_pair(to: Path) -> None:
    """Write the folder, whole or not at all; raises UserError where something is missing or does not belong together,
    and for a target that would lose other files."""
    to = to.resolve()
    check_target(to)
    params, pair = load_params(), load_pair()
    pair.check_base(params.profile)
    pair.check_weights()
    named = f"--served-model-name {pair.served_name}\n"
    if not paths.MODEL_CARD.is_file() or named not in paths.MODEL_CARD.read_text(encoding="utf-8"):
        raise UserError(f"{paths.MODEL_CARD} is missing or of another student: run `dvc repro`")
    own = (*MODEL_FILES, *PAIR_FILES, *OTHER_TOKENIZER_FILES, CARD, REQUEST)
    own += tuple(f"{ENCODER}/{file}" for file in (*ENCODER_FILES, *NOT_THE_STUDENT))
    with whole_folder(to, own) as draft:
        export(pair.base, pair.checkpoint, draft)
        for file in PAIR_FILES:
            shutil.copyfile(pair.folder / file, draft / file)
        shutil.copyfile(paths.MODEL_CARD, draft / CARD)
        # with {query} in the query's place
        write_json(draft / REQUEST, pair.requests(KINDS["vllm"]).body("{query}"))
        add_encoder(params, draft)


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
    if (folder := to / ENCODER).is_dir():
        print(f"the encoder student is in {folder} ({folder_mb(folder):.1f} MB): python -m serve --student {folder}")


if __name__ == "__main__":
    main()
