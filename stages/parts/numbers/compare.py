"""Two revisions against each other: DVC's differences of metrics and plots, and a page with the paired difference of
their predictions.

python -m stages.parts.numbers.compare main other    # branches, tags, commits; without the second: the workspace
"""

import argparse
import io
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from scmrepo.exceptions import SCMError

from stages.parts.numbers.arms import points, served_arm
from stages.parts.numbers.render import rendered
from stages.parts.numbers.statistics import difference_interval, mcnemar
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_jsonl, write_text
from stages.parts.run.params import load_params

WORKSPACE = "the workspace"


def read(path: Path, revision: str) -> str:
    """A file of a revision, from Git or from DVC's cache; raises UserError where it is in neither."""
    try:
        return str(dvc.api.read(str(path), rev=None if revision == WORKSPACE else revision))
    except (DvcException, SCMError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} of {revision} can't be read ({reason}): check it out and run `dvc repro`, or `dvc pull`"
        ) from None


def served_answers(revision: str) -> pd.DataFrame:
    """What the served student of a revision said: `actual` and `said`, by the rows' ids."""
    metrics = json.loads(read(paths.METRICS, revision))
    table = pd.read_csv(io.StringIO(read(paths.PREDICTIONS, revision)), dtype=str, keep_default_na=False).set_index(
        "id"
    )
    return table[["actual"]].assign(said=table[served_arm(metrics)])


def numbers(metrics: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of nested metrics by their dotted names."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{before}{name}"] = float(value)
    return found


def changed_metrics(a: str, b: str) -> list[dict[str, Any]]:
    """The metrics that differ, `name`, `a`, `b` and `change`; None where a revision lacks one."""
    of_a, of_b = (numbers(json.loads(read(paths.METRICS, revision))) for revision in (a, b))
    found = []
    for name in {**of_a, **of_b}:
        old, new = of_a.get(name), of_b.get(name)
        if old != new:
            found.append(
                {"name": name, "a": old, "b": new, "change": None if old is None or new is None else new - old}
            )
    return found


def compare(a: str, b: str, seed: int) -> dict[str, Any]:
    """The page's facts; raises UserError where the two have no test row in common."""
    both = served_answers(a).join(served_answers(b), how="inner", lsuffix="_a", rsuffix="_b")
    if both.empty:
        raise UserError(f"{a} and {b} have no test row in common: their accuracies can't be compared")
    right_a, right_b = both.said_a == both.actual_a, both.said_b == both.actual_b
    low, high = difference_interval(list(right_b), list(right_a), seed)
    texts = {row["id"]: row["text"] for row in read_jsonl(paths.TEST)}

    def rows(mask: "pd.Series[bool]", instead: str) -> list[dict[str, str]]:
        return [
            {"text": texts.get(str(row), str(row)), "actual": both.actual_b[row], "instead": both[instead][row]}
            for row in both.index[mask]
        ]

    return {
        "a": a,
        "b": b,
        "rows": len(both),
        "accuracy": {"a": float(right_a.mean()), "b": float(right_b.mean())},
        "difference": {
            "by": float(right_b.mean() - right_a.mean()),
            "low": low,
            "high": high,
            "p": mcnemar(list(right_b), list(right_a)),
        },
        "metrics": changed_metrics(a, b),
        "gained": rows(right_b & ~right_a, "said_a"),
        "lost": rows(right_a & ~right_b, "said_b"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.numbers.compare", description=__doc__.splitlines()[0])
    parser.add_argument("a", help="a branch, tag or commit")
    parser.add_argument("b", nargs="?", default=WORKSPACE, help="another; without it: the workspace")
    given = parser.parse_args()
    with command("compare"):
        params = load_params()
        facts = compare(given.a, given.b, params.seed)
        write_text(paths.COMPARE / "index.html", rendered("compare.html", {**facts, "color": params.report.color}))
    revisions = [given.a] + ([] if given.b == WORKSPACE else [given.b])
    subprocess.run(["dvc", "metrics", "diff", *revisions], check=False)
    subprocess.run(["dvc", "plots", "diff", *revisions, "--out", str(paths.COMPARE / "plots")], check=False)
    found = facts["difference"]
    print(
        f"\n{given.b} less {given.a}, served student on {facts['rows']} test rows: {points(found['by'])} points, "
        f"95 % interval "
        f"{points(found['low'])} to {points(found['high'])}, p = {found['p']:.2g}\nthe page: {paths.COMPARE}/index.html"
    )


if __name__ == "__main__":
    main()
