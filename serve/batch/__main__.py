"""Classify the rows of a CSV file with the served student, or of a folder of Parquet files with the decoder on Ray.

python -m serve.batch in.csv out.csv [--text-column text] [--student FOLDER]
python -m serve.batch --ray in/ out/ [--text-column text]

The output has the input's columns and label, confidence, abstained (and reasoning), in the input's order. A killed
run resumes where it stopped. The decoder runs on its own engine or at engine.api_base. On Ray there is a file of
answers for each file, and `failure` says why a row has no label (on_ray.py).
"""

import argparse
import logging
from pathlib import Path

from serve.batch import in_process
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.params import Params, load_params
from stages.parts.students.local import local_student


def classify_folder(source: Path, to: Path, column: str) -> None:
    """Classify on Ray; raises UserError if it is not installed."""
    from serve.batch.answers import resumable

    try:
        from serve.batch import on_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "Ray is not in this environment: run `make setup-ray`, then .venv-ray/bin/python -m serve.batch --ray"
        ) from None
    with resumable():
        on_ray.classify_folder(source, to, column)


def classify_csv(params: Params, source: Path, to: Path, column: str, folder: Path | None) -> None:
    """Classify with the in-process student of a folder, or what `serve.model` names."""
    if student := local_student(params, folder):
        in_process.classify_csv(student, source, to, column)
    else:
        from serve.batch import by_engine  # takes the engines' packages

        by_engine.classify_csv(params, source, to, column)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.batch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", type=Path, metavar="in", help="a CSV file with a header, or a folder of Parquet files"
    )
    parser.add_argument(
        "to", type=Path, metavar="out", help="a file, or a folder of them: each written whole at its end, or not at all"
    )
    parser.add_argument("--text-column", default="text", help="the column that holds the queries (default: text)")
    parser.add_argument(
        "--ray", action="store_true", help="a folder, on the Ray of this machine or the cluster at RAY_ADDRESS"
    )
    parser.add_argument("--student", type=Path, metavar="FOLDER", help="an in-process student, such as models/encoder")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    with command("serve.batch"):
        if given.ray:
            if given.student:
                raise UserError("Ray classifies with the decoder: leave out --student, or classify a CSV file")
            classify_folder(given.source, given.to, given.text_column)
        else:
            classify_csv(load_params(), given.source, given.to, given.text_column, given.student)


if __name__ == "__main__":
    main()
