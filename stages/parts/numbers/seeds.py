"""Run the pipeline over several seeds, as DVC experiments, and report mean and spread.

A difference of half a point in one run is noise: each seed draws different gold rows, so it trains a different teacher
and student.

python -m stages.parts.numbers.seeds 5 [-S raw.source=url ...]    # further arguments go to each `dvc exp run`
"""

import argparse
import json
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import dvc.api
import numpy as np
from scipy.stats import t

from stages.parts.numbers.arms import NAMES, SAME_LABELS
from stages.parts.numbers.render import percent, points
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json
from stages.parts.run.provenance import commit, today


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation of a run, and 95 % interval of the mean (Student's t) of two or more values."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return {"mean": mean, "deviation": deviation, "low": mean - reach, "high": mean + reach, "values": list(values)}


def experiments(names: Iterable[str]) -> dict[str, str]:
    """Return the commits of the named experiments that belong to the current commit."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout

    head = git("rev-parse", "HEAD").strip()
    listed = git("for-each-ref", f"refs/exps/{head[:2]}/{head[2:]}", "--format=%(refname:lstrip=4) %(objectname)")
    return {name: revision for name, revision in (line.split() for line in listed.splitlines()) if name in names}


def run_experiments(names: dict[str, int], settings: Sequence[str]) -> None:
    """Run an experiment for each seed, one after the other, outside the workspace; raises UserError if one fails.

    DVC's queue is not used: its worker can end while experiments are still queued, and `dvc exp run --run-all` then
    waits for ever (https://github.com/treeverse/dvc/issues/10428).
    """
    if earlier := experiments(names):
        # An old experiment would stand in for a run that fails now.
        subprocess.run(["dvc", "exp", "remove", "--quiet", *earlier], check=True)
    for name, seed in names.items():
        done = subprocess.run(
            ["dvc", "exp", "run", "--temp", "--name", name, "-S", f"seed={seed}", *settings], check=False
        )
        if done.returncode:
            raise UserError(
                f"the run with seed {seed} failed (see above): finished stages are kept, the same command goes on there"
            )


def results(names: dict[str, int]) -> dict[int, dict[str, Any]]:
    """Return metrics.json of each experiment by its seed."""
    found = {
        names[name]: json.loads(dvc.api.read(str(paths.METRICS), rev=revision))
        for name, revision in experiments(names).items()
    }
    return dict(sorted(found.items()))


def top_labels(names: dict[str, int]) -> int:
    """Return how many labels the named experiments keep."""
    params = dvc.api.params_show(rev=next(iter(experiments(names).values())))
    return int(params["top_n"] or params["profiles"][params["profile"]]["top_n"])


def summary(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of each arm over seeds, and the decoder's minus the teacher's and minus that of the
    best linear model on its labels.

    `answered` is the share of queries that the service answers, `right_answers` the share of right ones among these
    (None if a run answers nothing).
    """
    runs = list(by_seed.values())
    arms = [arm for arm in NAMES if all(arm in run["interval"] for run in runs)]
    of_answered = [run["served"]["precision"] for run in runs]

    def served_less(run: dict[str, Any], others: Sequence[str]) -> float:
        return run["served"]["accuracy"] - max(
            run["interval"][arm]["accuracy"] for arm in others if arm in run["interval"]
        )

    return {
        "day": today(),
        "commit": commit(),
        "profile": runs[0]["profile"],
        "source": runs[0]["source"],
        "seeds": list(by_seed),
        "served_arms": [f"tuned_{run['served']['program']}" for run in runs],
        "served": spread([run["served"]["accuracy"] for run in runs]),
        **{
            name: spread([run["served"][name] for run in runs])
            for name in ("calibration_error", "calibration_error_before", "answered")
        },
        "right_answers": spread([measure["accuracy"] for measure in of_answered]) if all(of_answered) else None,
        "accuracy": {arm: spread([run["interval"][arm]["accuracy"] for run in runs]) for arm in arms},
        "served_less_linear": spread([served_less(run, SAME_LABELS[run["labels"]]) for run in runs]),
        "served_less_teacher": spread([served_less(run, ["teacher"]) for run in runs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.numbers.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="how many seeds, two or more")
    given, settings = parser.parse_known_args()
    with command("seeds"):
        if given.count < 2:
            raise UserError(f"{given.count} seed has no spread: use 2 or more")
        names = {f"seed-{seed}": seed for seed in range(given.count)}
        run_experiments(names, settings)
        by_seed = results(names)
        found = summary(by_seed)
        path = paths.SEEDS / f"{found['profile']}-{found['source']}-top{top_labels(names)}.json"
        write_json(path, found)
    print(f"\ntest accuracy over seeds {', '.join(map(str, by_seed))}: mean and standard deviation of a run")
    for arm, values in {
        "decoder": found["served"],
        **{NAMES[arm]: each for arm, each in found["accuracy"].items()},
    }.items():
        print(f"  {arm:36}{percent(values['mean']):>8}{100 * values['deviation']:7.1f}")
    for arm in ("linear", "teacher"):
        less = found[f"served_less_{arm}"]
        print(
            f"decoder minus {arm}: {points(less['mean'])} points, 95 % interval {points(less['low'])} to "
            f"{points(less['high'])}"
        )
    before, after = (found[name]["mean"] for name in ("calibration_error_before", "calibration_error"))
    print(f"calibration error: {after:.3f}, before calibration {before:.3f}")
    right = f", {percent(found['right_answers']['mean'])} of them right" if found["right_answers"] else ""
    print(f"answered at the threshold: {percent(found['answered']['mean'])} of the queries{right}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
