"""Export the student that `optimize` chose as one folder for vLLM, transformers and the hub: model, program,
calibration, request, card.

python -m serve.export [--to models/export]
"""

import argparse
import shutil
from pathlib import Path

from stages.parts.engines.process import KINDS
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_folder, write_json
from stages.parts.run.params import load_params
from stages.parts.students.pair import PAIR_FILES, load_pair
from stages.parts.students.weights import MODEL_FILES, export

REQUEST = "request.json"
OTHER_TOKENIZER_FILES = ("vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")


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
    pair = load_pair()
    pair.check_base(load_params().profile)
    pair.check_weights()
    named = f"--served-model-name {pair.served_name}\n"
    if not paths.MODEL_CARD.is_file() or named not in paths.MODEL_CARD.read_text(encoding="utf-8"):
        raise UserError(f"{paths.MODEL_CARD} is missing or of another student: run `dvc repro`")
    own = (*MODEL_FILES, *PAIR_FILES, *OTHER_TOKENIZER_FILES, "README.md", REQUEST)
    with whole_folder(to, own) as draft:
        export(pair.base, pair.checkpoint, draft)
        for file in PAIR_FILES:
            shutil.copyfile(pair.folder / file, draft / file)
        shutil.copyfile(paths.MODEL_CARD, draft / "README.md")
        # with {query} in the query's place
        write_json(draft / REQUEST, pair.requests(KINDS["vllm"]).body("{query}"))


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
