"""Score everything on the test rows: both students with both programs, the teacher, the linear baselines. Opens the pool's true labels.

python -m stages.evaluate
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.parts.data.rows import Query, TeacherLabel
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.baseline import fitted_baseline
from stages.parts.numbers.calibration import calibrated, load_calibration
from stages.parts.numbers.statistics import (
    coverage_curve,
    difference_interval,
    expected_calibration_error,
    interval,
    reliability,
    rows_to_halve,
)
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, whole_file, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.scoring import Scores, latency, score
from stages.parts.students.serving import students
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar, program_state

LATENCY_QUERIES = 50
KINDS = ("plain", "optimized")


def measure(right: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its interval and count."""
    low, high = interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


@dataclass
class Students:
    """The scores of the arms (base_plain, base_optimized, tuned_plain, tuned_optimized), and seconds for queries that the served arm
    answers one at a time."""

    arms: dict[str, Scores]
    alone: list[float]


def score_students(params: Params, pair: Sidecar, test: list[Any]) -> Students:
    """Run base and tuned student with both programs over the test rows; equal prompts once."""
    plain = IntentClassifier(pair.labels, pair.instructions, pair.style)
    checkpoint = Path(pair.checkpoint)
    scored = Students({}, [])
    with closing(students(paths.BASE, {checkpoint.name: checkpoint}, params)) as engines:
        for name, served in engines:
            weights = "base" if name == "base" else "tuned"
            optimized = load_program(paths.PROGRAMS / f"{weights}.json", pair.labels, pair.instructions, pair.style)
            for kind, program in (("plain", plain), ("optimized", optimized)):
                requests = ProgramRequests(program, served.kind, served.names[name], pair.max_tokens)
                if kind == "optimized" and program_state(program) == program_state(plain):
                    scored.arms[f"{weights}_{kind}"] = scored.arms[f"{weights}_plain"]
                else:
                    scored.arms[f"{weights}_{kind}"] = score(served, requests, test, params.runtime.threads)
                if (weights, kind) == ("tuned", pair.program):
                    scored.alone = latency(served, requests, [row["text"] for row in test[:LATENCY_QUERIES]])
    return scored


def linear_arms(
    gold: list[Query], teacher: list[TeacherLabel], sealed: Mapping[str, str], test: list[Any], seed: int
) -> dict[str, list[str]]:
    """What the linear baseline says of the test rows after learning from gold, from the teacher, and from all true labels.

    An arm is absent where its rows can't teach it: nobody knows the true labels of a folder's pool, and gold may be a handful.
    """
    lessons = {
        "linear_gold": [(row["text"], row["label"]) for row in gold],
        "linear_teacher": [(row["text"], row["label"]) for row in teacher if row["valid"]],
        "linear_true": [(row["text"], sealed[row["id"]]) for row in teacher if row["id"] in sealed],
    }
    texts = [row["text"] for row in test]
    models = {arm: fitted_baseline(rows, seed) for arm, rows in lessons.items()}
    return {arm: [str(label) for label in model.predict(texts)] for arm, model in models.items() if model}


def own_columns(rows: list[Any]) -> dict[str, list[str | None]]:
    """The user's other columns (an id, a date), which came along as `raw.NAME`."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("raw."))
    return {name: [row.get(name) for row in rows] for name in names}


def main() -> None:
    params, pair = load_params(), load_sidecar(paths.SIDECAR)
    test, gold = read_jsonl(paths.TEST), read_jsonl(paths.GOLD)
    teacher_pool, teacher_test = read_jsonl(paths.TEACHER_LABELS), read_jsonl(paths.TEACHER_TEST)
    sealed = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    actual = [row["label"] for row in test]
    calibration = load_calibration(paths.CALIBRATION)

    of_students = score_students(params, pair, test)
    linear = linear_arms(gold, teacher_pool, sealed, test, params.seed)
    predicted = {arm: scores.predicted for arm, scores in of_students.arms.items()}
    predicted |= {"teacher": [row["label"] for row in teacher_test]} | linear
    right = {arm: [label == true for label, true in zip(answers, actual, strict=True)] for arm, answers in predicted.items()}
    measured = {arm: measure(hits) for arm, hits in right.items()}
    of_pool = measure([row["valid"] and row["label"] == sealed[row["id"]] for row in teacher_pool]) if sealed else {}

    served_arm = f"tuned_{pair.program}"
    served, served_right = of_students.arms[served_arm], right[served_arm]
    as_reported = [max(probabilities.values(), default=0.0) for probabilities in served.probabilities]
    sure = [max(calibrated(probabilities, calibration.temperature).values(), default=0.0) for probabilities in served.probabilities]
    bins = reliability(sure, served_right)
    # What a service that abstains below the threshold would have answered.
    answered = [hit for hit, value in zip(served_right, sure, strict=True) if calibration.threshold and value >= calibration.threshold]
    p50, p95 = pd.Series(of_students.alone).quantile([0.5, 0.95])

    write_json(
        paths.METRICS,
        {
            "profile": params.profile,
            "source": params.raw.source,
            "style": pair.style,
            "labels": params.sft.labels,
            "test": {
                "n": len(test),
                **{weights: {kind: measured[f"{weights}_{kind}"]["accuracy"] for kind in KINDS} for weights in ("base", "tuned")},
                **{arm: measured[arm]["accuracy"] for arm in ("teacher", *linear)},
            },
            "teacher": {f"pool_{name}": value for name, value in of_pool.items()},
            # Rows more than the test's own at which the served student's interval would be half as wide.
            "rows_to_halve_interval": rows_to_halve(sum(served_right), len(test)),
            "interval": {arm: {name: figures[name] for name in ("accuracy", "low", "high", "n")} for arm, figures in measured.items()},
            "served": {
                "checkpoint": Path(pair.checkpoint).name,
                "program": pair.program,
                "accuracy": measured[served_arm]["accuracy"],
                "invalid": sum(label not in pair.labels for label in served.predicted),
                "calibration_error": expected_calibration_error(bins),
                "calibration_error_before": expected_calibration_error(reliability(as_reported, served_right)),
                "temperature": calibration.temperature,
                "threshold": calibration.threshold,
                "wanted_precision": calibration.wanted_precision,
                "answered": len(answered) / len(test),
                "precision": measure(answered) if answered else None,
                "prompt_tokens": sum(reading.prompt_tokens for reading in served.readings) / len(test),
                "completion_tokens": sum(reading.completion_tokens for reading in served.readings) / len(test),
                "queries_per_second": len(test) / served.seconds,
                "p50_ms": 1000 * float(p50),
                "p95_ms": 1000 * float(p95),
            },
            # The served student's accuracy minus another's, on the same rows: an interval without 0 is a real difference.
            "served_less": {
                arm: dict(zip(("low", "high"), difference_interval(served_right, right[arm], params.seed), strict=True))
                for arm in ("teacher", *linear)
            },
        },
    )
    with whole_file(paths.PREDICTIONS) as draft:
        pd.DataFrame({"id": [row["id"] for row in test], "actual": actual, **predicted, "confidence": sure, **own_columns(test)}).to_csv(
            draft, index=False
        )
    with whole_file(paths.CONFUSION) as draft:
        pd.DataFrame({"actual": actual, "predicted": served.predicted}).to_csv(draft, index=False)
    write_json(paths.RELIABILITY, bins)
    write_json(paths.COVERAGE, coverage_curve(sure, served_right))


if __name__ == "__main__":
    run_stage(main)
