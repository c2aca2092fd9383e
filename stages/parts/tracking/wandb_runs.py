"""W&B: a run with the curve and metrics of each stage, grouped by pipeline run."""

import os

os.environ.setdefault("WANDB_SILENT", "true")

import wandb

from stages.parts.run import paths
from stages.parts.tracking.stage_record import StageRecord, pipeline_run

PROJECT = "teacher-to-student"


def log_to_wandb(mode: str, record: StageRecord) -> None:
    """Log a finished stage; raises what W&B raises. With `mode` offline it writes to .cache/wandb, and `wandb sync`
    uploads from there.
    """
    key, _ = pipeline_run()
    folder = paths.cache() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=PROJECT,
        group=key,
        name=record.stage,
        job_type=record.stage,
        config=record.params,
        mode=mode,
        dir=str(folder),
    )
    for point in record.curve:
        run.log({name: value for name, value in point.items() if name != "step"}, step=int(point["step"]))
    run.log({path.stem: wandb.Image(str(path)) for path in record.figures})
    run.summary.update(record.metrics)
    run.finish()
