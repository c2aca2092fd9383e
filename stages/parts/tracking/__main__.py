"""Log a stage that has just run to MLflow and W&B, as params.yaml's block `tracking` says.

python -m stages.parts.tracking STAGE
"""

import sys

from stages.parts.run.params import load_params
from stages.parts.tracking.stage_record import read_stage


def main() -> None:
    settings, record = load_params().tracking, read_stage(sys.argv[1])
    # Each import takes seconds.
    if settings.mlflow:
        from stages.parts.tracking.mlflow_runs import log_to_mlflow

        log_to_mlflow(settings.mlflow, record)
    if settings.wandb:
        from stages.parts.tracking.wandb_runs import log_to_wandb

        log_to_wandb(settings.wandb, record)


if __name__ == "__main__":
    main()
