"""Classify the rows of a CSV file, or of a folder of Parquet files on Ray, with the served pair, on its own engine or
engine.api_base.

python -m serve.batch in.csv out.csv [--text-column text]
python -m serve.batch --ray in/ out/ [--text-column text]

The output has the input's columns and label, confidence, abstained (and reasoning), in the input's order. A killed run
resumes where it stopped. On Ray there is a file of answers for each file, and `failure` says why a row has no label
(on_ray.py).
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from serve.batch.csv_file import classify_csv
from stages.parts.engines.http_client import EngineError
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError


def on_ray() -> Callable[[Path, Path, str], None]:
    """Return the function that classifies folders; raises UserError if Ray is not installed."""
    try:
        from serve.batch.on_ray import classify_folder
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "Ray is not in this environment: run `make setup-ray`, then .venv-ray/bin/python -m serve.batch --ray"
        ) from None
    return classify_folder


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
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    with command("serve.batch"):
        try:
            (on_ray() if given.ray else classify_csv)(given.source, given.to, given.text_column)
        except EngineError as error:
            raise UserError(f"{error}; answers so far are kept: run it again to go on") from None


if __name__ == "__main__":
    main()
