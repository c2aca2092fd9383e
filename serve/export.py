"""Export the student that `optimize` chose as one model, for vLLM, transformers and what reads those.

python -m serve.export [--to models/export]
"""

import argparse
import sys
from pathlib import Path

from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.students.merge import export
from stages.parts.task.program_file import load_sidecar


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.export", description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=paths.EXPORT, help=f"folder to write, replaced if it is there (default: {paths.EXPORT})")
    to: Path = parser.parse_args().to
    try:
        pair = load_sidecar(paths.SIDECAR)
        export(Path(pair.base), Path(pair.checkpoint), to)
    except UserError as error:
        sys.exit(f"export: {error}")
    print(f"{pair.checkpoint} on {pair.base} written to {to}; its prompts are those of {paths.PROGRAM}")


if __name__ == "__main__":
    main()
