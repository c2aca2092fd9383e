"""What every stage does, and nothing that changes a result: no stage depends on this room in dvc.yaml."""
