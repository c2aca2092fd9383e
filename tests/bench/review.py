"""Compare a review of the queue's hundred rows with one of random rows; the sealed labels stand in for a person. `make
bench-review`

python -m tests.bench.review [--seeds 0 1] [--rows 100] [--out reports/bench/review.json]

Each arm fills `decisions.csv` with that many rows and runs the stages split and teacher. The figure is the share of
right labels in the pool afterwards, the teacher's and the reviewed ones.
"""

import argparse
import random
import subprocess
from contextlib import chdir
from pathlib import Path
from statistics import mean

from stages.parts.data.decisions import Decision, add_decisions
from stages.parts.data.rows import TeacherLabel
from stages.parts.review.queue import rows_to_review
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json
from stages.parts.run.params import load_params
from stages.parts.run.provenance import now
from tests.bench.machine import machine
from tests.bench.pipeline import cloned, corpora, run_stages

ARMS = ("none", "random", "queue")


def share_right(true: dict[str, str]) -> float:
    """Return the share of right labels in the pool as it was before the review."""
    labelled = {row["id"]: row["label"] for path in (paths.TEACHER_LABELS, paths.REVIEWED) for row in read_jsonl(path)}
    return mean(labelled[row] == label for row, label in true.items())


def arms(changes: list[str], rows: int) -> dict[str, float]:
    """Return the share of right labels of each arm."""
    with cloned() as clone, chdir(clone):
        run_stages(clone, changes, "teacher")
        params = load_params()
        true = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
        chosen_by: dict[str, list[TeacherLabel]] = {
            "random": random.Random(params.seed).sample(read_jsonl(paths.TEACHER_LABELS), rows),
            "queue": [doubt.row for doubt in rows_to_review(params, rows)],
        }
        found = {"none": share_right(true)}
        before = paths.DECISIONS.read_bytes()
        for arm, chosen in chosen_by.items():
            paths.DECISIONS.write_bytes(before)
            add_decisions(
                paths.DECISIONS, [Decision(row["id"], true[row["id"]], row["label"], now()) for row in chosen]
            )
            subprocess.run(["dvc", "repro", "teacher"], check=True)
            found[arm] = share_right(true)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.review", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/review.json"))
    given = parser.parse_args()
    out = given.out.resolve()
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for corpus, settings in corpora().items():
        runs[corpus] = {}
        for seed in given.seeds:
            runs[corpus][str(seed)] = arms([*settings, f"seed={seed}"], given.rows)
            write_json(out, {"machine": machine(), "rows": given.rows, "runs": runs})
    print("| corpus | seed | " + " | ".join(ARMS) + " |\n" + "|---" * (len(ARMS) + 2) + "|")
    for corpus, by_seed in runs.items():
        for seed, found in by_seed.items():
            print(f"| {corpus} | {seed} | " + " | ".join(f"{found[arm]:.1%}" for arm in ARMS) + " |")


if __name__ == "__main__":
    main()
