"""What reruns and what does not, on a small pipeline: four labels, a small student, two epochs."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import commit_all, make_clone, run
from tests.end_to_end.pipeline import STAGES, edit, ran, repro, wait_for

pytestmark = pytest.mark.engine
SMALL = {
    ("top_n",): 4,
    ("split", "dev"): 60,
    ("split", "optimizer_val"): 20,
    ("split", "gold"): 20,
    ("optimize", "train_rows"): 20,
    ("optimize", "candidate_programs"): 0,
    ("train", "epochs"): 2,
    ("train", "embeddings"): True,  # so few rows teach adapters alone nothing
    ("profiles", "embedded", "student", "epochs"): 1,
    ("profiles", "embedded", "student", "hidden_size"): 64,
}


def small_clone(folder: Path) -> Path:
    clone = make_clone(folder)
    for path, value in SMALL.items():
        edit(clone, *path, value=value)
    commit_all(clone, "small")
    return clone


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A small clone in which `dvc repro` has run."""
    folder = small_clone(tmp_path_factory.mktemp("small") / "repository")
    assert repro(folder) == STAGES
    commit_all(folder, "built")
    return folder


def test_raw_to_sft_are_the_same_in_every_clone_and_a_foreign_lock_reruns_none_of_them(built, tmp_path):
    other = small_clone(tmp_path / "other")
    assert ran(run(other, "dvc", "repro", "sft").stdout) == STAGES[: STAGES.index("sft") + 1]
    ours, theirs = (yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (built, other))
    for stage in STAGES[: STAGES.index("sft") + 1]:
        assert ours[stage]["outs"] == theirs[stage]["outs"], stage
    foreign = (built / "dvc.lock").read_text()
    for stage in STAGES[STAGES.index("base") :]:
        for out in ours[stage]["outs"]:
            foreign = foreign.replace(
                out["md5"], f"{hash(out['md5']) % 16**32:032x}" + (".dir" if out["md5"].endswith(".dir") else "")
            )
    (other / "dvc.lock").write_text(foreign)
    assert ran(run(other, "dvc", "repro", "sft").stdout) == []


def test_nothing_changed_nothing_runs(built):
    assert repro(built) == []


def test_an_edit_that_changes_no_output_stops_where_it_is(built):
    """A comment in the task's room reruns what uses it; equal outputs retrain nothing."""
    file = built / "stages/parts/task/text.py"
    file.write_text(file.read_text() + "\n# a comment\n")
    assert ran(run(built, "dvc", "repro", "sft").stdout) == STAGES[: STAGES.index("sft") + 1]
    assert "lora" not in json.loads(run(built, "dvc", "status", "--json").stdout)
    run(built, "git", "checkout", "-q", "stages", "dvc.lock")
    assert repro(built) == []


def test_speed_knobs_and_other_profiles_rerun_nothing_and_a_color_the_report_alone(built):
    edit(built, "runtime", "max_in_flight", value=8)
    edit(built, "profiles", "llama", "student", "max_model_len", value=4096)
    assert repro(built) == []
    edit(built, "report", "color", value="#aa3311")
    assert repro(built) == ["report"]
    run(built, "git", "checkout", "-q", "params.yaml")
    assert repro(built) == []  # restored from the run cache


def test_a_rank_reruns_lora_and_what_follows_and_going_back_restores(built):
    before = (built / "reports/metrics.json").read_text()
    quick = ["-S", "train.epochs=1", "-S", "lora.r=16", "-S", "runtime.weights=adapter", "-S", "train.embeddings=false"]
    after_lora = [stage for stage in STAGES[STAGES.index("lora") :] if stage not in ("encoder", "linear")]
    assert ran(run(built, "dvc", "exp", "run", "--name", "rank-16", *quick).stdout) == after_lora
    assert json.loads((built / "models/lora/epoch-1/adapter_config.json").read_text())["r"] == 16
    run(built, "git", "checkout", "-qb", "rank-16")
    commit_all(built, "rank 16")
    assert "test.tuned.plain" in run(built, "dvc", "metrics", "diff", "main").stdout
    run(built, "git", "checkout", "-q", "main")
    assert repro(built) == []
    assert (built / "reports/metrics.json").read_text() == before
    assert not (built / "models/lora/epoch-1/adapter_config.json").read_text().count('"r": 16')


def test_a_queued_experiment_runs_apart_and_is_listed(built):
    run(built, "dvc", "exp", "run", "--queue", "--name", "green", "-S", "report.color='#118844'")
    run(built, "dvc", "queue", "start")
    wait_for(lambda: "Success" in run(built, "dvc", "queue", "status").stdout, 180)
    assert "green" in run(built, "dvc", "exp", "list", "--name-only").stdout
    assert "#118844" not in (built / "params.yaml").read_text()
    assert repro(built) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["-S", "lora.r=0"], "lora: params.yaml: lora.r: Input should be greater than 0 (got 0)"),
        (["-S", "train.epochs=many"], "lora: params.yaml: train.epochs: Input should be a valid integer (got 'many')"),
        (["-S", "lora.rank=4"], "lora.rank"),
        (["-S", "profile=lama"], "lama"),
        (["-S", "top_n=99"], "filter: the training rows have 25 labels, fewer than top_n=99"),
        (["-S", "split.gold=100000"], "split: split.gold=100000 leaves no pool"),
        (["-S", "raw.source=csv", "-S", "raw.train=nowhere.csv"], "nowhere.csv"),
        (["-S", "profile=llama", "-S", "raw.source=sample"], "needs an NVIDIA GPU"),
        (
            ["-S", "profile=api", "-S", "raw.source=sample"],
            "teacher's endpoint: the api profile needs its teacher's key: set TEACHER_API_KEY",
        ),
    ],
)
def test_a_wrong_parameter_stops_a_run_and_destroys_nothing(built, change, says):
    kept = {name: (built / name).read_text() for name in ("params.yaml", "dvc.lock", "reports/metrics.json")}
    done = run(built, "dvc", "exp", "run", *change, check=False)
    run(built, "git", "checkout", "HEAD", "--", "params.yaml", "dvc.lock")
    assert all((built / name).read_text() == text for name, text in kept.items())
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert "Running stage" not in done.stdout or "`git checkout HEAD -- params.yaml dvc.lock` goes back" in done.stderr
    assert repro(built) == []
    assert (built / "reports/metrics.json").read_text() == kept["reports/metrics.json"]


def test_chain_of_thought_asks_the_teacher_nothing_anew_and_works_to_the_end(built):
    quick = ["-S", "program.style=chain_of_thought"]
    assert ran(run(built, "dvc", "exp", "run", *quick).stdout) == STAGES[STAGES.index("sft") :]
    first = json.loads((built / "data/sft/train.jsonl").read_text().splitlines()[0])
    assert re.fullmatch(
        r"(?s)\[\[ ## reasoning ## ]] .+\n\n\[\[ ## label ## ]] \w+",
        first["messages"][2]["content"],
    )
    metrics = json.loads((built / "reports/metrics.json").read_text())
    assert metrics["style"] == "chain_of_thought" and metrics["served"]["completion_tokens"] > 10
    # so small a student need not end its reasons: a cut answer is counted
    assert 0 <= metrics["served"]["invalid"] <= metrics["test"]["n"]
    run(built, "git", "checkout", "-qf", "main")
    assert repro(built) == []
