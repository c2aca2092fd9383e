"""Compare two revisions: DVC's diffs of metrics and plots, and a page with the paired difference of the students that
their reports advise to serve.

python -m stages.parts.numbers.compare A B    # branches, tags or commits; B defaults to the workspace
"""

import argparse
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from scmrepo.exceptions import SCMError

from stages.parts.numbers.advice import CONTENDERS
from stages.parts.numbers.metrics import ARM_OF, flat_numbers
from stages.parts.numbers.render import points, rendered
from stages.parts.numbers.statistics import difference_interval, mcnemar
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_jsonl, write_text
from stages.parts.run.params import load_params

WORKSPACE = "the workspace"


def read(path: Path, revision: str) -> str:
    """Return a file of a revision, from Git or from DVC's cache; raises UserError if it is in neither."""
    try:
        return str(dvc.api.read(str(path), rev=None if revision == WORKSPACE else revision))
    except (DvcException, SCMError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} of {revision} can't be read ({reason}): check it out and run `dvc repro`, or `dvc pull`"
        ) from None


@dataclass(frozen=True)
class AdvisedStudent:
    """The student that a revision's report advises to serve: its name, and its `predictions` of the test rows, a table
    of `actual` and `predicted` by row id.
    """

    name: str
    predictions: pd.DataFrame


def advised_student(revision: str) -> AdvisedStudent:
    """Return the advised student of a revision, the decoder where no contender is advised.

    Raises UserError if the revision's predictions are another version's.
    """
    metrics = json.loads(read(paths.METRICS, revision))
    contender = metrics.get("serve", "decoder")  # a report without advice is of the decoder alone
    arm = ARM_OF.get(contender, f"tuned_{metrics['served']['program']}")
    table = pd.read_csv(io.StringIO(read(paths.PREDICTIONS, revision)), dtype=str, keep_default_na=False)
    if missing := {"id", "actual", arm} - set(table.columns):
        raise UserError(
            f"{paths.PREDICTIONS} of {revision} has no column {min(missing)}: it is another version's and can't be "
            "compared; check that revision out and run `dvc repro`"
        )
    predictions = table.set_index("id")[["actual", arm]].rename(columns={arm: "predicted"})
    return AdvisedStudent(CONTENDERS[contender], predictions)


def changed_metrics(a: str, b: str) -> list[dict[str, Any]]:
    """Return the metrics that differ: `name`, `a`, `b` and `change`, None if a revision lacks the metric."""
    metrics_a, metrics_b = (flat_numbers(json.loads(read(paths.METRICS, revision))) for revision in (a, b))
    changed = []
    for name in {**metrics_a, **metrics_b}:
        old, new = metrics_a.get(name), metrics_b.get(name)
        if old != new:
            changed.append(
                {"name": name, "a": old, "b": new, "change": None if old is None or new is None else new - old}
            )
    return changed


def compare(a: str, b: str) -> dict[str, Any]:
    """Return what the page shows; raises UserError if the two have no test row in common."""
    student_a, student_b = advised_student(a), advised_student(b)
    both = student_a.predictions.join(student_b.predictions, how="inner", lsuffix="_a", rsuffix="_b")
    if both.empty:
        raise UserError(f"{a} and {b} have no test row in common: their accuracies can't be compared")
    right_a, right_b = both.predicted_a == both.actual_a, both.predicted_b == both.actual_b
    low, high = difference_interval(list(right_b), list(right_a))
    texts = {row["id"]: row["text"] for row in read_jsonl(paths.TEST)}

    def rows(mask: "pd.Series[bool]", instead: str) -> list[dict[str, str]]:
        return [
            {"text": texts.get(str(row), str(row)), "actual": both.actual_b[row], "instead": both[instead][row]}
            for row in both.index[mask]
        ]

    return {
        "a": a,
        "b": b,
        "advised": {"a": student_a.name, "b": student_b.name},
        "rows": len(both),
        "accuracy": {"a": float(right_a.mean()), "b": float(right_b.mean())},
        "difference": {
            "by": float(right_b.mean() - right_a.mean()),
            "low": low,
            "high": high,
            "p": mcnemar(list(right_b), list(right_a)),
        },
        "metrics": changed_metrics(a, b),
        "gained": rows(right_b & ~right_a, "predicted_a"),
        "lost": rows(right_a & ~right_b, "predicted_b"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.numbers.compare", description=__doc__.splitlines()[0])
    parser.add_argument("a", help="a branch, tag or commit")
    parser.add_argument("b", nargs="?", default=WORKSPACE, help="another one; the workspace if left out")
    given = parser.parse_args()
    with command("compare"):
        params = load_params()
        found = compare(given.a, given.b)
        write_text(paths.COMPARE / "index.html", rendered("compare.html", **found, color=params.report.color))
    revisions = [given.a] + ([] if given.b == WORKSPACE else [given.b])
    subprocess.run(["dvc", "metrics", "diff", *revisions], check=False)
    subprocess.run(["dvc", "plots", "diff", *revisions, "--out", str(paths.COMPARE / "plots")], check=False)
    difference, advised = found["difference"], found["advised"]
    print(
        f"\nthe advised students: {given.a}: {advised['a']}, {given.b}: {advised['b']}\n"
        f"{given.b} minus {given.a} on {found['rows']} test rows: {points(difference['by'])} points, "
        f"95 % interval {points(difference['low'])} to {points(difference['high'])}, p = {difference['p']:.2g}\n"
        f"the page: {paths.COMPARE}/index.html"
    )


if __name__ == "__main__":
    main()
