"""`make compare` and `make seeds`: their real commands on a small repository of Git and DVC."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from stages.parts.numbers.compare import WORKSPACE, advised_student
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from tests.conftest import ROOT, commit_all, run

# In the place of the pipeline: the seed decides how many of 40 rows each arm gets right.
PIPELINE = """
import csv, json, pathlib, yaml
params = yaml.safe_load(open("params.yaml"))
seed = params["seed"]
assert (seed, params["top_n"]) != (1, 3), "this one fails"
right = {"tuned_plain": 20 + seed * 2 + params["top_n"], "linear_teacher": 30, "linear_cleaned": 25, "teacher": 28}
right["encoder"] = 34
metrics = {"profile": "embedded", "source": "sample", "labels": "teacher"}
if params["top_n"] == 12:  # else the report is of the decoder alone
    metrics["serve"] = "encoder"
metrics["served"] = {"program": "plain", "accuracy": right["tuned_plain"] / 40}
metrics["served"] |= {"calibration_error": 0.04, "calibration_error_before": 0.1}
metrics["served"] |= {"answered": 0.5 + seed / 10, "precision": {"accuracy": 0.9}}
metrics["interval"] = {arm: {"accuracy": count / 40} for arm, count in right.items()}
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/metrics.json").write_text(json.dumps(metrics))
with open("reports/predictions.csv", "w") as file:
    table = csv.writer(file)
    table.writerow(["id", "actual", *right])
    table.writerows([f"row{n}", "yes", *("yes" if n < count else "no" for count in right.values())] for n in range(40))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("revisions") / "repository"
    (folder / "data/splits").mkdir(parents=True)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@example.invalid")
    run(folder, "dvc", "init", "-q")
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "params.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((ROOT / "params.yaml").read_text()) | {"top_n": 2})
    )
    stage = {"cmd": f"{sys.executable} pipeline.py", "deps": ["pipeline.py"], "params": ["seed", "top_n"]}
    outputs = {"outs": ["reports/predictions.csv"], "metrics": [{"reports/metrics.json": {"cache": False}}]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage | outputs}}))
    (folder / "data/splits/test.jsonl").write_text(
        "".join(json.dumps({"id": f"row{n}", "text": f"<b>query {n}"}) + "\n" for n in range(40))
    )
    run(folder, "dvc", "repro", "-q")
    commit_all(folder, "seed 0")
    return folder


def command(folder: Path, module: str, *arguments: str, check: bool = True):
    return run(
        folder, sys.executable, "-m", f"stages.parts.numbers.{module}", *arguments, check=check, PYTHONPATH=str(ROOT)
    )


@pytest.mark.slow
def test_two_revisions_are_compared_on_the_same_rows(repository):
    run(repository, "git", "checkout", "-qb", "better")
    params = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(params.replace("top_n: 2", "top_n: 12"))
    run(repository, "dvc", "repro", "-q")
    in_workspace = command(repository, "compare", "main").stdout
    commit_all(repository, "ten more right")
    run(repository, "git", "checkout", "-q", "main")
    run(repository, "dvc", "checkout", "-q")
    done = command(repository, "compare", "main", "better").stdout
    for said in (in_workspace, done):
        assert re.search(
            r"on 40 test rows: \+30\.0 points, 95 % interval \+1\d\.\d to \+\d\d\.\d, p = 0\.00053", said
        ), said
        assert re.search(r"the advised students: main: decoder, (better|the workspace): encoder student\n", said), said
    assert "served.accuracy" in done, "DVC's own difference of metrics"
    page = (repository / "reports/compare/index.html").read_text()
    assert "better is better." in page and "Right only with better: 12" in page and "Right only with main: 0" in page
    assert "&lt;b&gt;query 22" in page and "<b>query" not in page
    assert "85.0\N{NO-BREAK SPACE}% in better (encoder student), 55.0\N{NO-BREAK SPACE}% in main (decoder)" in page
    assert "tuned" not in page.split("Queries answered differently")[1]
    assert command(repository, "compare", "main", "main").stdout.count("+0.0 points")
    assert "No difference shown" in (repository / "reports/compare/index.html").read_text()


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_one_clear_line(repository):
    done = command(repository, "compare", "main", "nowhere", check=False)
    assert done.returncode == 1 and "of nowhere can't be read" in done.stderr and "Traceback" not in done.stderr


def test_predictions_of_another_version_are_one_clear_line(repository, monkeypatch):
    monkeypatch.chdir(repository)
    predictions = repository / paths.PREDICTIONS
    written = predictions.read_text()
    predictions.unlink()  # it may be a link into DVC's cache
    predictions.write_text(written.replace("tuned_plain", "student"))
    with pytest.raises(UserError, match="of the workspace has no column tuned_plain: it is another version's"):
        advised_student(WORKSPACE)
    predictions.write_text(written)


@pytest.mark.slow
def test_seeds_report_mean_and_spread_and_a_failed_one_is_named(repository):
    said = command(repository, "seeds", "2").stdout
    found = json.loads((repository / "reports/seeds/embedded-sample-top2.json").read_text())
    assert found["seeds"] == [0, 1] and found["served"]["values"] == pytest.approx([0.55, 0.6])
    assert found["served"]["mean"] == pytest.approx(0.575) and found["served"]["deviation"] == pytest.approx(
        0.05 / 2**0.5
    )
    # Student's t of one degree of freedom
    assert found["served"]["high"] - 0.575 == pytest.approx(12.706 * 0.05 / 2, rel=1e-3)
    assert found["answered"]["mean"] == pytest.approx(0.55) and found["right_answers"]["deviation"] == 0
    assert found["served_less_linear"]["mean"] == pytest.approx(0.575 - 0.75), "against the better of the linear models"
    assert "57.5\N{NO-BREAK SPACE}%" in said and "\N{MINUS SIGN}17.5 points" in said

    done = command(repository, "seeds", "2", "-S", "top_n=3", check=False)
    assert done.returncode == 1 and "seeds: the run with seed 1 failed" in done.stderr
    assert json.loads((repository / "reports/seeds/embedded-sample-top2.json").read_text()) == found, (
        "nothing half written"
    )
