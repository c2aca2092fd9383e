"""Finished stages told to MLflow and W&B. Reads what the stages wrote, changes nothing, and runs in `.venv-tracking`,
beside the stage.
"""
