"""Where everything lies, relative to the repository root, as dvc.yaml declares it, too (tests/run/test_pipeline_file.py
compares them).
"""

import os
from pathlib import Path

SAMPLE = Path("data/sample")
DECISIONS = Path("data/review/decisions.csv")
PROMPTS = Path("data/prompts")  # PROFILE.json, where `make tune-teacher` has written it
RAW = Path("data/raw")
RAW_ROWS = RAW / "rows.parquet"
RAW_LABELS = RAW / "labels.json"
FILTERED = Path("data/filtered")
FILTERED_ROWS = FILTERED / "rows.parquet"
LABELS = FILTERED / "labels.json"
DESCRIPTIONS = FILTERED / "descriptions.json"
SPLITS = Path("data/splits")
GOLD = SPLITS / "gold.jsonl"
POOL = SPLITS / "pool.jsonl"
TEST = SPLITS / "test.jsonl"
REVIEWED = SPLITS / "reviewed.jsonl"
SEALED = SPLITS / "sealed.jsonl"
OUT_OF_SCOPE = SPLITS / "out_of_scope.jsonl"
EMBEDDINGS = Path("data/embeddings")  # PART.npy
EMBEDDINGS_ENCODER = EMBEDDINGS / "encoder.json"
TEACHER = Path("data/teacher")
TEACHER_LABELS = TEACHER / "labels.jsonl"
TEACHER_TEST = TEACHER / "test.jsonl"
TEACHER_GOLD = TEACHER / "gold.jsonl"
TEACHER_FAILED = TEACHER / "failed.jsonl"
SFT = Path("data/sft")
SFT_TRAIN = SFT / "train.jsonl"
SFT_DEV = SFT / "dev.jsonl"
OPTIMIZER_VAL = SFT / "optimizer_val.jsonl"
OPTIMIZER_TRAIN = SFT / "optimizer_train.jsonl"

BASE = Path("models/base")
LORA = Path("models/lora")
ENCODER = Path("models/encoder")
ENCODER_HELD_OUT = Path("models/encoder_held_out.jsonl")
ENCODER_CALIBRATION = Path("models/encoder_calibration.json")
LINEAR = Path("models/linear")
LINEAR_HELD_OUT = Path("models/linear_held_out.jsonl")
LINEAR_CALIBRATION = Path("models/linear_calibration.json")
PROGRAMS = Path("models/programs")
PROGRAM = Path("models/program.json")
SIDECAR = Path("models/program.sidecar.json")
EXPORT = Path("models/export")  # made by hand, no stage's
HELD_OUT = Path("models/held_out.jsonl")
CALIBRATION = Path("models/calibration.json")
SERVED = Path("models/served.json")
PROMOTED = Path("models/promoted")  # of `make promote`, no stage's: a folder of each promoted student

REPORTS = Path("reports")
FILTER_REPORT = REPORTS / "filter.json"
SPLIT_REPORT = REPORTS / "split.json"
TEACHER_REPORT = REPORTS / "teacher.json"
SFT_REPORT = REPORTS / "sft.json"
LEAKS = REPORTS / "leaks.json"
LEARNING_CURVE = REPORTS / "learning_curve.json"
DEV_REPORT = REPORTS / "dev.json"
MODEL_CARD = REPORTS / "model_card.md"
METRICS = REPORTS / "metrics.json"
PREDICTIONS = REPORTS / "predictions.csv"
ARMS = REPORTS / "arms.csv"
BY_LABEL = REPORTS / "by_label.csv"
CONFUSION = REPORTS / "confusion.csv"
RELIABILITY = REPORTS / "reliability.json"
COVERAGE = REPORTS / "coverage.json"
TIMES = REPORTS / "times"
COMPARE = REPORTS / "compare"  # this and seeds: of `make compare` and `make seeds`, no stage's
SEEDS = REPORTS / "seeds"  # PROFILE-SOURCE.json
TUNING_REPORT = REPORTS / "teacher_tuning.json"  # of `make tune-teacher`
TRAFFIC = Path("data/served/traffic.sqlite")  # of `make serve`: texts of users, never in Git
TRACES = Path(".cache/traces")  # of a run's own folder: not shared with runs that DVC starts elsewhere


def cache() -> Path:
    """What must survive a killed stage (DVC removes a stage's outputs before it runs): `.cache` of the repository.

    DVC sets DVC_ROOT to the parent repository also for `exp run --temp` and `--queue`, so those share it.
    """
    return Path(os.environ.get("DVC_ROOT", ".")).resolve() / ".cache"
