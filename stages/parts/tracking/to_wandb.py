"""W&B: curves and numbers of each stage, grouped by pipeline run."""

import os

os.environ.setdefault("WANDB_SILENT", "true")

import wandb

from stages.parts.run import paths
from stages.parts.tracking.finished_stage import Finished, run_name

PROJECT = "teacher-to-student"


def tell(mode: str, told: Finished) -> None:
    """Log a finished stage; `mode` offline writes into .cache/wandb, from where `wandb sync` uploads. Raises what W&B
    raises.
    """
    key, _ = run_name()
    folder = paths.cache() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=PROJECT, group=key, name=told.stage, job_type=told.stage, config=told.params, mode=mode, dir=str(folder)
    )
    for point in told.curve:
        run.log({name: value for name, value in point.items() if name != "step"}, step=int(point["step"]))
    run.log({path.stem: wandb.Image(str(path)) for path in told.figures})
    run.summary.update(told.metrics)
    run.finish()
