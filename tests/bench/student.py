"""The student against its teacher and the linear model, over seeds and corpora, as `evaluate` scores it. `make bench-student`

python -m tests.bench.student [--seeds 0 1 2] [--out reports/bench/student.json] [-S KEY=VALUE ...]

Each run is the whole pipeline: another seed draws other gold rows, so another teacher, and other base weights. Banking77-25 only where its
files are at hand (see data/README.md). Half an hour on two quiet cores for three seeds and both corpora.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from stages.parts.run.files import write_json
from tests.bench.machine import machine
from tests.bench.pipeline import corpora, run_pipeline

COLUMNS = ("student", "linear_teacher", "teacher", "linear_true", "base", "calibration_error", "calibration_error_before")


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    test, served = metrics["test"], metrics["served"]
    return {
        "student": served["accuracy"],
        "base": test["base"]["plain"],
        **{name: test[name] for name in ("teacher", "linear_teacher", "linear_true")},
        **{name: served[name] for name in ("calibration_error", "calibration_error_before")},
    }


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a line a seed, and their mean."""
    lines = ["| corpus | seed | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for corpus, by_seed in runs.items():
        means = {name: mean(run[name] for run in by_seed.values()) for name in COLUMNS}
        for seed, run in [*by_seed.items(), ("mean", means)]:
            shown = [f"{run[name]:.3f}" if "error" in name else f"{run[name]:.1%}" for name in COLUMNS]
            lines.append(f"| {corpus} | {seed} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.student", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/student.json"))
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="another parameter, for all runs")
    given = parser.parse_args()
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for corpus, settings in corpora().items():
        runs[corpus] = {}
        for seed in given.seeds:
            runs[corpus][str(seed)] = figures(run_pipeline([*settings, f"seed={seed}", *given.changes]))
            write_json(given.out, {"machine": machine(), "changes": given.changes, "runs": runs})  # each as it comes: they take minutes
            print(json.dumps({"corpus": corpus, "seed": seed, **runs[corpus][str(seed)]}), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
