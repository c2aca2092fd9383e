"""Log finished stages to MLflow and W&B. Reads what the stages wrote, changes nothing, and runs in `.venv-tracking`.

__main__      log one stage, as params.yaml's block `tracking` says
stage_record  what a stage has to log: parameters, metrics, pictures, files, DSPy calls
mlflow_runs   a run for the pipeline, a nested one for each stage, the served pair in the registry
mlflow_model  the registered model: JSON and code
wandb_runs    a run for each stage, grouped by pipeline run
"""
