"""Tracking with a real MLflow server and W&B offline, read back through MLflow's API, and the logged model in a fresh
process.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import requests
import yaml

from stages.parts.engines.dspy_bridge import using_student
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.process import KINDS
from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.machine import free_port
from stages.parts.run.params import load_params
from stages.parts.run.traces import SAMPLE, recorded_calls
from stages.parts.students.search import search
from stages.parts.task.program import IntentClassifier
from tests.conftest import ROOT
from tests.serve.shop import ended, wait_until
from tests.stages.finished_run import finish_run

VENV = ROOT / ".venv-tracking"
FRESH = """
import json, mlflow
model = mlflow.pyfunc.load_model("models:/intent-classifier@served")
print(json.dumps(model.predict(["My card got declined"])))
try:
    model.predict(["fine", "[[ ## label ## ]]"])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""
TRACES = """
import json, mlflow
client = mlflow.MlflowClient()
[experiment] = [found.experiment_id for found in client.search_experiments() if found.name == "teacher-to-student"]
spans = ("name", "span_id", "parent_id", "inputs", "outputs")
print(json.dumps([
    {
        "run": run, "stage": client.get_run(run).data.tags["stage"], "usage": trace.info.token_usage,
        "spans": [{key: getattr(span, key) for key in spans} for span in trace.data.spans],
    }
    for trace in client.search_traces(locations=[experiment])
    for run in [trace.info.trace_metadata["mlflow.sourceRun"]]
]))
"""

pytestmark = pytest.mark.skipif(not VENV.exists(), reason="needs MLflow and W&B: make setup-tracking")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        finish_run(folder, patch)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / ".venv-tracking").symlink_to(VENV)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A real `mlflow server` on SQLite."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    line = [
        VENV / "bin/mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        folder / "artifacts",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*map(str, line), "--port", str(port), "--workers", "1"], cwd=folder, stdout=log, stderr=log, text=True
        )
    with ended(process):
        wait_until(f"http://127.0.0.1:{port}/health", patience_s=120)
        yield f"http://127.0.0.1:{port}"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def track(folder: Path, **settings: str) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["tracking"] |= settings
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def report(folder: Path) -> str:
    """Run the real stage; gives what it says on standard error."""
    line = [sys.executable, "-m", "stages.report"]
    return subprocess.run(line, cwd=folder, env=environment(), text=True, capture_output=True, check=True).stderr


def ask(server: str, path: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{server}/api/2.0/mlflow/{path}", query, timeout=30).json()
    return found


def runs(server: str) -> dict[str, dict[str, Any]]:
    """What MLflow's API says, by stage; the parent's stage is empty."""
    experiment = ask(server, "experiments/get-by-name", experiment_name="teacher-to-student")["experiment"]
    body = {"experiment_ids": [experiment["experiment_id"]]}
    found = requests.post(f"{server}/api/2.0/mlflow/runs/search", json=body, timeout=30).json()["runs"]
    return {
        tags.get("stage", ""): {
            "id": run["info"]["run_id"],
            "tags": tags,
            "status": run["info"]["status"],
            **{
                kind: {entry["key"]: entry["value"] for entry in run["data"].get(kind, ())}
                for kind in ("params", "metrics")
            },
        }
        for run in found
        for tags in [{tag["key"]: tag["value"] for tag in run["data"]["tags"]}]
    }


@pytest.mark.slow
def test_a_run_is_read_back_and_its_model_answers_in_a_fresh_process(finished, server):
    track(finished, mlflow=server, wandb="offline")
    for stage in ("lora", "evaluate"):  # as run_stage calls it
        subprocess.run(
            [VENV / "bin/python", "-m", "stages.parts.tracking", stage], cwd=finished, env=environment(), check=True
        )
    done = subprocess.run(
        [sys.executable, "-m", "stages.report"],
        cwd=finished,
        env=environment(),
        text=True,
        capture_output=True,
        check=True,
    )
    assert "tracking" not in done.stderr

    found, metrics = runs(server), read_json(finished / paths.METRICS)
    assert set(found) == {"", "lora", "evaluate", "report"} and {run["status"] for run in found.values()} == {
        "FINISHED"
    }
    assert all(run["tags"]["mlflow.parentRunId"] == found[""]["id"] for stage, run in found.items() if stage)
    for run in (found[""], found["evaluate"]):
        assert run["metrics"]["metrics.served.accuracy"] == metrics["served"]["accuracy"]
    assert found["lora"]["params"]["lora.r"] == "32" and "evaluate" not in found["lora"]["params"]
    curve = requests.get(
        f"{server}/api/2.0/mlflow/metrics/get-history",
        {"run_id": found["lora"]["id"], "metric_key": "loss"},
        timeout=30,
    ).json()
    assert [point["step"] for point in curve["metrics"]] == [
        point["step"] for point in read_json(finished / paths.LEARNING_CURVE)
    ]
    figures = requests.get(
        f"{server}/api/2.0/mlflow/artifacts/list", {"run_id": found["report"]["id"], "path": "figures"}, timeout=30
    ).json()
    assert "figures/accuracy_test.png" in {file["path"] for file in figures["files"]}
    assert len(list((finished / ".cache/wandb/wandb").glob("offline-run-*/*.wandb"))) == 3

    port, pair = free_port(), read_json(finished / paths.SIDECAR)
    model = f"epoch-6-{pair['checkpoint_sha256'][:12]}"
    stub = [
        sys.executable,
        "-m",
        "tests.serve.stub_engine",
        "--port",
        str(port),
        "--model",
        model,
        "--key",
        "secret",
        "--latency-ms",
        "0",
    ]
    with ended(subprocess.Popen(stub, cwd=ROOT, text=True)):
        wait_until(f"http://127.0.0.1:{port}/last")
        fresh = subprocess.run(
            [VENV / "bin/python", "-W", "ignore", "-c", FRESH],
            cwd=finished.parent,  # nothing of the project here
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": server,
                "ENGINE_API_BASE": f"http://127.0.0.1:{port}/v1",
                "ENGINE_API_KEY": "secret",
            },
            text=True,
            capture_output=True,
            check=False,
        )
    assert fresh.returncode == 0, fresh.stderr[-3000:]
    answers, refusal = fresh.stdout.splitlines()[-2:]
    [answer] = json.loads(answers)
    assert answer["label"] in pair["labels"] and 0 < answer["confidence"] < 1 and answer["model"] == model
    assert refusal == "UserError: query 1 holds nothing to read: leave it out"


@pytest.mark.slow
def test_dspys_calls_are_read_back_each_under_its_own_run(finished, tmp_path, monkeypatch):
    """What the optimiser asks, and what threads ask at once, in two runs of the pipeline."""
    monkeypatch.chdir(finished)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    track(finished, mlflow=store)
    gold, labels, port = read_jsonl(paths.GOLD), read_json(paths.LABELS), free_port()
    program = IntentClassifier(labels, "Classify.", "direct")
    with ended(
        subprocess.Popen(
            [sys.executable, "-m", "tests.serve.stub_engine", "--port", str(port), "--model", "student"], cwd=ROOT
        )
    ):
        wait_until(f"http://127.0.0.1:{port}/last")
        served = ServedModel(f"http://127.0.0.1:{port}/v1", {"student": "student"}, "none", KINDS["vllm"])
        for seed in (1, 2):
            params = yaml.safe_load(Path("params.yaml").read_text()) | {"seed": seed}
            Path("params.yaml").write_text(yaml.safe_dump(params))
            rows = [{**row, "text": f"{row['text']} run {seed}"} for row in gold]
            with recorded_calls("optimize", load_params()), using_student(served, "student", program, 8):
                search(program, rows, load_params().optimize, lambda _: 0.0)
                threads = dspy.Parallel(num_threads=8, disable_progress_bar=True)
                threads([(program, dspy.Example(query=row["text"]).with_inputs("query")) for row in rows])
            subprocess.run(
                [VENV / "bin/python", "-m", "stages.parts.tracking", "optimize"], env=environment(), check=True
            )
    said = subprocess.run(
        [VENV / "bin/python", "-W", "ignore", "-c", TRACES],
        env=environment(MLFLOW_TRACKING_URI=store),
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    traces = json.loads(said.splitlines()[-1])
    asked = {(trace["run"], trace["spans"][0]["inputs"]["query"][-1]) for trace in traces}
    assert len(traces) == 2 * SAMPLE and len(asked) == 2 == len({run for run, _ in asked}) == len(
        {seed for _, seed in asked}
    )
    for trace in traces:
        outer, inner, model = trace["spans"]
        assert (outer["name"], inner["name"], model["name"]) == ("IntentClassifier", "Predict", "hosted_vllm/student")
        assert (outer["parent_id"], inner["parent_id"], model["parent_id"]) == (
            None,
            outer["span_id"],
            inner["span_id"],
        )
        assert outer["inputs"]["query"] in model["inputs"][-2]["content"], "a call of another thread"
        assert model["outputs"] == [outer["outputs"]["label"]] and trace["stage"] == "optimize"
        assert trace["usage"] == {"input_tokens": 100, "output_tokens": 1, "total_tokens": 101}


@pytest.mark.slow
def test_a_dead_server_fails_no_stage(finished):
    track(finished, mlflow=f"http://127.0.0.1:{free_port()}")
    done = subprocess.run(
        [sys.executable, "-m", "stages.report"],
        cwd=finished,
        env=environment(),
        text=True,
        capture_output=True,
        check=True,
    )
    assert "tracking: report is not tracked: " in done.stderr and done.stderr.count("\n") <= 2
