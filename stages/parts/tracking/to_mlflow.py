"""MLflow: a run for the pipeline, one inside it for each stage, and the served pair in the registry as a model that
answers.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a dead server must not hold up the pipeline
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import mlflow.pyfunc
from mlflow.entities import LiveSpan, Metric, Param, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing.constant import SpanAttributeKey, TokenUsageKey, TraceMetadataKey
from mlflow.tracking import MlflowClient

from stages.parts.run import paths
from stages.parts.run.files import read_json
from stages.parts.run.params import load_params
from stages.parts.run.provenance import commit
from stages.parts.task.program_file import load_sidecar
from stages.parts.tracking.finished_stage import Finished, run_name

EXPERIMENT = "teacher-to-student"
MODEL = "intent-classifier"  # in the registry
KEY = "pipeline_run"
CODE = Path(__file__).resolve().parents[3]
LONGEST = 6000  # characters of a parameter's value that MLflow takes
AT_ONCE = 100  # parameters in a request


def store(uri: str) -> str:
    """The tracking store; a relative SQLite file lies in the repository also for runs that DVC starts elsewhere."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith("sqlite:////"):
        return f"{prefix}{paths.cache().parent / uri.removeprefix(prefix)}"
    return uri


def experiment(client: MlflowClient, uri: str) -> str:
    """The experiment's id, made where there is none; artifacts of a SQLite store lie beside its file."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    local = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=local.as_uri() if local else None))


def parent_run(client: MlflowClient, experiment_id: str) -> str:
    """The run of this pipeline run, found by its key or made."""
    key, name = run_name()
    found = client.search_runs([experiment_id], filter_string=f"tags.{KEY} = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, run_name=name, tags={KEY: key, "commit": commit()})
    return str(run.info.run_id)


def log(client: MlflowClient, run_id: str, told: Finished) -> None:
    params = [Param(name, value[:LONGEST]) for name, value in told.params.items()]
    for start in range(0, len(params), AT_ONCE):
        client.log_batch(run_id, params=params[start : start + AT_ONCE])
    now = int(1000 * max((path.stat().st_mtime for path in told.files), default=0))
    metrics = [Metric(name, value, now, 0) for name, value in told.metrics.items()]
    metrics += [
        Metric(name, value, now, int(point["step"]))
        for point in told.curve
        for name, value in point.items()
        if name != "step"
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    for path in told.figures:
        client.log_artifact(run_id, str(path), "figures")
    for path in told.files:
        client.log_artifact(run_id, str(path), str(path.parent))


def log_traces(experiment_id: str, run_id: str, traces: list[list[dict[str, Any]]]) -> None:
    """A stage's DSPy calls under its run, named by its id; all are sent when this returns."""
    kinds = {"module": SpanType.CHAIN, "model": SpanType.CHAT_MODEL}
    for calls in traces:
        spans: dict[str, LiveSpan] = {}
        for call in calls:
            outer = spans.get(call["parent"])
            spans[call["id"]] = mlflow.start_span_no_context(
                call["name"],
                span_type=kinds[call["kind"]],
                parent_span=outer,
                inputs=call["inputs"],
                metadata={} if outer else {TraceMetadataKey.SOURCE_RUN: run_id},
                experiment_id=None if outer else experiment_id,
                start_time_ns=call["started_ns"],
            )
        for call in reversed(calls):
            span = spans[call["id"]]
            if call["usage"]:
                span.set_attribute(SpanAttributeKey.CHAT_USAGE, token_usage(call["usage"]))
            status = SpanStatus(SpanStatusCode.ERROR, call["error"]) if call["error"] else SpanStatus(SpanStatusCode.OK)
            span.end(call["outputs"], status=status, end_time_ns=call["ended_ns"])
    mlflow.flush_trace_async_logging()


def token_usage(by_model: dict[str, dict[str, Any]]) -> dict[str, int]:
    """DSPy's counts under MLflow's names."""
    sent, said = (sum(usage[kind] for usage in by_model.values()) for kind in ("prompt_tokens", "completion_tokens"))
    return {
        TokenUsageKey.INPUT_TOKENS: sent,
        TokenUsageKey.OUTPUT_TOKENS: said,
        TokenUsageKey.TOTAL_TOKENS: sent + said,
    }


def register(client: MlflowClient, run_id: str) -> None:
    """The pair that `optimize` chose as a model that answers queries, registered, and its weights beside it."""
    pair = load_sidecar(paths.SIDECAR)
    artifacts = {"sidecar": paths.SIDECAR, "program": paths.PROGRAM, "calibration": paths.CALIBRATION}
    with mlflow.start_run(run_id=run_id):
        model = mlflow.pyfunc.log_model(
            name="classifier",
            python_model=str(CODE / "serve/mlflow_model.py"),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(CODE / "serve"), str(CODE / "stages")],
            model_config={"engine": load_params().engine.kind},
            pip_requirements=str(CODE / "requirements-tracking.lock"),
            registered_model_name=MODEL,
        )
    client.log_artifacts(run_id, pair.checkpoint, pair.checkpoint)
    metrics = read_json(paths.METRICS)
    tags = {
        "accuracy": f"{metrics['served']['accuracy']:.4f}",
        "checkpoint": f"{pair.checkpoint} {pair.checkpoint_sha256[:12]}",
        "program": f"{pair.program} {pair.program_sha256[:12]}",
    }
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, model.registered_model_version, name, value)
    client.set_registered_model_alias(MODEL, "served", model.registered_model_version)


def tell(uri: str, told: Finished) -> None:
    """Log a finished stage; raises what MLflow raises."""
    uri = store(uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiment_id = experiment(client, uri)
    parent = parent_run(client, experiment_id)
    tags = {"mlflow.parentRunId": parent, "stage": told.stage}
    run_id = client.create_run(experiment_id, run_name=told.stage, tags=tags).info.run_id
    log(client, run_id, told)
    log_traces(experiment_id, run_id, told.traces)
    client.set_terminated(run_id)
    if told.stage == "evaluate":  # what runs are compared by
        log(client, parent, Finished(told.stage, told.params, told.metrics))
    if told.stage == "report":
        register(client, parent)
        client.set_terminated(parent)
