"""A finished run without an engine: what `evaluate` and `report` read, made up from the sample corpus, and both stages
run on it.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import dspy
import pandas as pd
import pytest
import yaml

from stages import evaluate, linear, report, sft
from stages.parts.data.rows import row_id
from stages.parts.engines.requests import Prediction
from stages.parts.numbers.calibration import PairCalibration, StudentCalibration
from stages.parts.run import paths
from stages.parts.run.files import file_sha256, folder_sha256, write_json, write_jsonl
from stages.parts.students.scoring import Scores
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, save_program, save_sidecar
from stages.parts.task.prompt import StudentFormat
from stages.parts.task.student_file import write_no_student
from tests.conftest import ROOT

OUTSIDE = ["Do you sell lamps?", "Sing me a song", "What is the time?", "Who won?"]


def mistaken(labels: Sequence[str], label: str, share: float, source: random.Random) -> str:
    """The label, or for a `share` of calls the next one."""
    return labels[(labels.index(label) + 1) % len(labels)] if source.random() < share else label


def finish_run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    student_errors: float = 0.2,
    labels_of: int = 4,
    pool_rows: int = 160,
    served: str = "linear",
) -> Path:
    """Write a run's files into the folder, work there, and run sft, evaluate and report; the engine's answers are made
    up, a share of `student_errors` of them wrong."""
    monkeypatch.chdir(folder)
    source = random.Random(0)
    tables = {part: pd.read_csv(ROOT / f"data/sample/{part}.csv") for part in ("train", "test")}
    rows = {
        part: [
            {"id": row_id(text), "text": text, "label": label}
            for text, label in zip(table.text, table.category, strict=True)
        ]
        for part, table in tables.items()
    }
    labels = sorted({row["label"] for row in rows["train"]})[:labels_of]
    train, test = ([row for row in rows[part] if row["label"] in labels] for part in ("train", "test"))
    gold, pool = train[:40], train[40 : 40 + pool_rows]

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["split"] |= {"dev": 20, "optimizer_val": 20}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_json(paths.LABELS, labels)
    write_no_student(paths.ENCODER)
    write_json(paths.EMBEDDINGS_ENCODER, {"key": None})
    write_jsonl(paths.GOLD, gold)
    write_jsonl(paths.POOL, [{"id": row["id"], "text": row["text"]} for row in pool])
    write_jsonl(paths.SEALED, [{"id": row["id"], "label": row["label"]} for row in pool])
    write_jsonl(paths.TEST, test)
    write_jsonl(paths.REVIEWED, [])
    write_jsonl(paths.OUT_OF_SCOPE, [{"id": row_id(text), "text": text} for text in OUTSIDE])
    write_json(
        paths.SPLIT_REPORT,
        {"gold": len(gold), "pool": len(pool), "test": len(test), "test_from": "file", "near_duplicates": 0},
    )

    for path, part in ((paths.TEACHER_LABELS, pool), (paths.TEACHER_TEST, test), (paths.TEACHER_GOLD, gold)):
        answers = [
            {"id": row["id"], "text": row["text"], "label": mistaken(labels, row["label"], 0.15, source)}
            for row in part
        ]
        write_jsonl(
            path,
            [
                {**answer, "reasoning": "so", "valid": True, "confidence": 0.8, "probabilities": {}}
                for answer in answers
            ],
        )
    teacher = {
        "profile": "embedded",
        "rows": len(pool),
        "valid": len(pool),
        "prompt_tokens": 1000,
        "completion_tokens": 100,
    }
    write_json(paths.TEACHER_REPORT, teacher)
    write_json(
        paths.FILTER_REPORT, {"left_out": dict.fromkeys(("two_labels", "in_test", "in_gold_or_test", "repeated"), 0)}
    )
    sft.main()

    for weights in (paths.BASE, paths.LORA / "epoch-6"):
        weights.mkdir(parents=True)
        (weights / "weights").write_text(weights.name)
    program = IntentClassifier(labels, "Classify.", "direct")
    for path in (paths.PROGRAM, paths.PROGRAMS / "base.json", paths.PROGRAMS / "tuned.json"):
        save_program(program, path)
    save_sidecar(
        Sidecar(
            profile="embedded",
            labels=labels,
            instructions="Classify.",
            style="direct",
            program="plain",
            program_sha256=file_sha256(paths.PROGRAM),
            prompt_format=StudentFormat.version,
            max_tokens=8,
            base=str(paths.BASE),
            base_sha256="2" * 64,
            checkpoint=str(paths.LORA / "epoch-6"),
            checkpoint_sha256="3" * 64,
            dspy_version=dspy.__version__,
            dev_accuracy=0.8,
        ),
        paths.SIDECAR,
    )
    figures = {"temperature": 1.1, "threshold": 0.7, "wanted_precision": 0.9, "rows": 40, "coverage": 0.6}
    figures |= {"precision": 0.91, "promise": None}
    of_pair = PairCalibration(checkpoint_sha256="3" * 64, program_sha256=file_sha256(paths.PROGRAM), **figures)
    write_json(paths.CALIBRATION, of_pair.model_dump())
    linear.main()
    of_linear = StudentCalibration(student_sha256=folder_sha256(paths.LINEAR), **figures)
    write_json(paths.LINEAR_CALIBRATION, of_linear.model_dump())
    write_json(paths.ENCODER_CALIBRATION, None)
    shares = "linear 90.0\N{NO-BREAK SPACE}%, decoder 80.0\N{NO-BREAK SPACE}%"
    why = f"agreement with the teacher on 20 dev rows: {shares}; linear is the best, and the cheapest"
    write_json(paths.SERVED, {"serve": served, "why": why, "profile": "embedded"})
    halves = {"plain": 0.1, "optimized": 0.1}
    write_json(
        paths.DEV_REPORT,
        {
            "profile": "embedded",
            "dev": {"n": 40, "base": halves, "tuned": {"plain": 0.82, "optimized": 0.8}},
            "checkpoints": {f"epoch-{number}": {"plain": 0.7 + number / 50, "optimized": 0.7} for number in (5, 6)},
        },
    )
    write_json(paths.LEARNING_CURVE, [{"step": step, "epoch": step / 10, "loss": 2 / step} for step in range(1, 30)])
    for number, stage in enumerate(report.STAGES):
        write_json(paths.TIMES / f"{stage}.json", {"seconds": 0.1 + number * 7, "peak_memory_mb": 100 * number})

    def answered(errors: float) -> evaluate.StudentAnswers:
        readings = []
        for row in test:
            label, sure = mistaken(labels, row["label"], errors, source), source.uniform(0.3, 1)
            others = {other: (1 - sure) / (len(labels) - 1) for other in labels if other != label}
            readings.append(Prediction(label, {label: sure, **others}, prompt_tokens=30, completion_tokens=1))
        right = sum(reading.label == row["label"] for reading, row in zip(readings, test, strict=True))
        return evaluate.StudentAnswers(
            Scores(right / len(test), readings, seconds=len(test) / 100),
            seconds_alone=[0.01] * 50,
            valid_free=0.9,
            out_of_scope=[],
        )

    base, tuned = answered(0.95), answered(student_errors)
    unsure = {label: 1 / len(labels) for label in labels}
    tuned.out_of_scope.extend(
        [Prediction(labels[0], {**unsure, labels[0]: 0.95}), *[Prediction(labels[0], unsure)] * 3]
    )
    students = {"base_plain": base, "base_optimized": base, "tuned_plain": tuned, "tuned_optimized": tuned}
    monkeypatch.setattr(evaluate, "score_students", lambda *_: students)
    evaluate.main()
    report.main()
    return folder
