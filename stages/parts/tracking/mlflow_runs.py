"""MLflow: a run for the pipeline, a nested run for each stage, and the served pair as a model in the registry."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a dead server must not delay the pipeline
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import mlflow.pyfunc
from mlflow.entities import LiveSpan, Metric, Param, SpanStatus, SpanStatusCode, SpanType
from mlflow.tracing.constant import SpanAttributeKey, TokenUsageKey, TraceMetadataKey
from mlflow.tracking import MlflowClient

from stages.parts.numbers.metrics import load_metrics
from stages.parts.run import paths
from stages.parts.run.params import load_params
from stages.parts.run.provenance import commit
from stages.parts.task.program_file import load_sidecar
from stages.parts.tracking.stage_record import StageRecord, pipeline_run

EXPERIMENT = "teacher-to-student"
MODEL = "intent-classifier"  # in the registry
KEY = "pipeline_run"
ROOT = Path(__file__).resolve().parents[3]
LONGEST_VALUE = 6000  # characters of a parameter's value, MLflow's limit
PARAMS_PER_REQUEST, METRICS_PER_REQUEST = 100, 1000  # MLflow's limits


def store(uri: str) -> str:
    """Return the tracking store's URI. A relative SQLite file is in the repository, wherever DVC runs the stage."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith("sqlite:////"):
        return f"{prefix}{paths.cache().parent / uri.removeprefix(prefix)}"
    return uri


def experiment(client: MlflowClient, uri: str) -> str:
    """Return the experiment's id, creating it if needed. Artifacts of a SQLite store are beside its file."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    local = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=local.as_uri() if local else None))


def parent_run(client: MlflowClient, experiment_id: str) -> str:
    """Return the id of this pipeline's run, found by its key or created."""
    key, name = pipeline_run()
    found = client.search_runs([experiment_id], filter_string=f"tags.{KEY} = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, run_name=name, tags={KEY: key, "commit": commit()})
    return str(run.info.run_id)


def log_record(client: MlflowClient, run_id: str, record: StageRecord) -> None:
    """Log everything of a stage but its traces."""
    params = [Param(name, value[:LONGEST_VALUE]) for name, value in record.params.items()]
    for start in range(0, len(params), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_REQUEST])
    now = int(1000 * max((path.stat().st_mtime for path in record.files), default=0))
    metrics = [Metric(name, value, now, 0) for name, value in record.metrics.items()]
    metrics += [
        Metric(name, value, now, int(point["step"]))
        for point in record.curve
        for name, value in point.items()
        if name != "step"
    ]
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
    for path in record.figures:
        client.log_artifact(run_id, str(path), "figures")
    for path in record.files:
        client.log_artifact(run_id, str(path), str(path.parent))


def log_traces(experiment_id: str, run_id: str, traces: list[list[dict[str, Any]]]) -> None:
    """Log a stage's DSPy calls under its run. All are sent when this returns."""
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
    """Return DSPy's counts under MLflow's names."""
    prompt, completion = (
        sum(usage[kind] for usage in by_model.values()) for kind in ("prompt_tokens", "completion_tokens")
    )
    return {
        TokenUsageKey.INPUT_TOKENS: prompt,
        TokenUsageKey.OUTPUT_TOKENS: completion,
        TokenUsageKey.TOTAL_TOKENS: prompt + completion,
    }


def register(client: MlflowClient, run_id: str) -> None:
    """Register the pair that `optimize` chose as a model that answers queries, with its weights beside it."""
    pair = load_sidecar(paths.SIDECAR)
    artifacts = {"sidecar": paths.SIDECAR, "program": paths.PROGRAM, "calibration": paths.CALIBRATION}
    with mlflow.start_run(run_id=run_id):
        model = mlflow.pyfunc.log_model(
            name="classifier",
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(ROOT / "stages")],
            model_config={"engine": load_params().engine.kind},
            pip_requirements=str(ROOT / "requirements-tracking.lock"),
            registered_model_name=MODEL,
        )
    client.log_artifacts(run_id, pair.checkpoint, pair.checkpoint)
    served = load_metrics(paths.METRICS).served
    tags = {
        "accuracy": f"{served.accuracy:.4f}",
        "checkpoint": f"{pair.checkpoint} {pair.checkpoint_sha256[:12]}",
        "program": f"{pair.program} {pair.program_sha256[:12]}",
    }
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, model.registered_model_version, name, value)
    client.set_registered_model_alias(MODEL, "served", model.registered_model_version)


def log_to_mlflow(uri: str, record: StageRecord) -> None:
    """Log a finished stage; raises what MLflow raises."""
    uri = store(uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiment_id = experiment(client, uri)
    parent = parent_run(client, experiment_id)
    tags = {"mlflow.parentRunId": parent, "stage": record.stage}
    run_id = client.create_run(experiment_id, run_name=record.stage, tags=tags).info.run_id
    log_record(client, run_id, record)
    log_traces(experiment_id, run_id, record.traces)
    client.set_terminated(run_id)
    if record.stage == "evaluate":  # runs of the pipeline are compared by these
        log_record(client, parent, StageRecord(record.stage, record.params, record.metrics))
    if record.stage == "report":
        register(client, parent)
        client.set_terminated(parent)
