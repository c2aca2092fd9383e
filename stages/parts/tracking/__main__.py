"""Tell MLflow and W&B, as params.yaml's block `tracking` says, of a stage that has just run.

python -m stages.parts.tracking STAGE
"""

import sys

from stages.parts.run.params import load_params
from stages.parts.tracking.finished_stage import finished


def main() -> None:
    settings, told = load_params().tracking, finished(sys.argv[1])
    if settings.mlflow:
        from stages.parts.tracking import to_mlflow  # each takes seconds to import

        to_mlflow.tell(settings.mlflow, told)
    if settings.wandb:
        from stages.parts.tracking import to_wandb

        to_wandb.tell(settings.wandb, told)


if __name__ == "__main__":
    main()
