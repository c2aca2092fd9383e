"""The two program styles beside each other: the whole pipeline in each, and what its served student costs and is worth.
`make bench-styles`

python -m tests.bench.styles [--out reports/bench/styles.json] [-S KEY=VALUE ...]

Each style runs in a clone of the last commit, with this repository's DVC cache: what ran before is not run again, and
nothing here changes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stages.parts.run.files import write_json
from tests.bench.machine import machine
from tests.bench.pipeline import run_pipeline

STYLES = ("direct", "chain_of_thought")
FIGURES = (
    "accuracy",
    "calibration_error",
    "invalid",
    "prompt_tokens",
    "completion_tokens",
    "p50_ms",
    "p95_ms",
    "queries_per_second",
)


def served(style: str, changes: list[str]) -> dict[str, Any]:
    """Run the pipeline in a style; what metrics.json says of the served student."""
    metrics = run_pipeline([f"program.style={style}", *changes])
    found = metrics["interval"][f"tuned_{metrics['served']['program']}"]
    return {figure: metrics["served"][figure] for figure in FIGURES} | {
        "low": found["low"],
        "high": found["high"],
        "n": metrics["test"]["n"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.styles", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/styles.json"))
    parser.add_argument(
        "-S",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another parameter, for both styles",
    )
    given = parser.parse_args()
    found = {
        "machine": machine(),
        "changes": given.changes,
        "styles": {style: served(style, given.changes) for style in STYLES},
    }
    write_json(given.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
