"""Score everything on the test rows: both students with both programs, the teacher, the linear baselines. Opens the
pool's true labels.

python -m stages.evaluate
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline

from stages.parts.data.rows import Row, TeacherLabel, extra_columns
from stages.parts.engines.requests import Prediction, ProgramRequests
from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.numbers.calibration import calibrated, load_calibration
from stages.parts.numbers.out_of_scope import out_of_scope_figures, scoped_confidence
from stages.parts.numbers.statistics import (
    coverage_curve,
    difference_interval,
    expected_calibration_error,
    interval,
    macro_f1,
    mcnemar,
    reliability,
    rows_to_halve,
)
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, whole_file, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.scoring import Scores, latency, score
from stages.parts.students.serving import students
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar, program_state

LATENCY_QUERIES = 50
FREE_QUERIES = 200  # asked again without the constraint
KINDS = ("plain", "optimized")


def measure(right: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its interval and count."""
    low, high = interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


@dataclass(frozen=True)
class Arm:
    """A student with a program: its scores, seconds for queries one at a time, and the share of valid answers where
    nothing holds it to the labels."""

    scores: Scores
    alone: list[float]
    valid_free: float
    outside: list[Prediction]  # its answers to texts that no label fits


def score_students(
    params: Params, pair: Sidecar, test: list[Any], outside: list[Any], before: list[Future[Any]]
) -> dict[str, Arm]:
    """base_plain, base_optimized, tuned_plain, tuned_optimized: both students with both programs over the test rows;
    equal prompts once.

    The served one is asked what is `outside`, too.

    Engines start at once; they are asked when `before` is done, since times are measured.
    """
    plain = IntentClassifier(pair.labels, pair.instructions, pair.style)
    checkpoint = Path(pair.checkpoint)
    arms: dict[str, Arm] = {}
    with closing(students(paths.BASE, {checkpoint.name: checkpoint}, params)) as engines:
        for name, served in engines:
            wait(before)
            weights = "base" if name == "base" else "tuned"
            optimized = load_program(paths.PROGRAMS / f"{weights}.json", pair.labels, pair.instructions, pair.style)
            for kind, program in (("plain", plain), ("optimized", optimized)):
                if kind == "optimized" and program_state(program) == program_state(plain):
                    arms[f"{weights}_{kind}"] = arms[f"{weights}_plain"]
                    continue
                requests, free = (
                    ProgramRequests(program, served.kind, served.names[name], pair.max_tokens, held=held)
                    for held in (True, False)
                )
                is_served = (weights, kind) == ("tuned", pair.program)
                said = score(served, free, test[:FREE_QUERIES], params.runtime.max_in_flight).predicted
                arms[f"{weights}_{kind}"] = Arm(
                    scores=score(served, requests, test, params.runtime.max_in_flight),
                    alone=latency(served, requests, [row["text"] for row in test[:LATENCY_QUERIES]]),
                    valid_free=sum(label in pair.labels for label in said) / len(said),
                    outside=score(served, requests, outside, params.runtime.max_in_flight).readings
                    if is_served and outside
                    else [],
                )
    return arms


def mean_tokens(scores: Scores) -> dict[str, float]:
    """Tokens a query."""
    return {
        kind: sum(getattr(reading, kind) for reading in scores.readings) / len(scores.readings)
        for kind in ("prompt_tokens", "completion_tokens")
    }


def linear_lessons(
    gold: list[Row], reviewed: list[Row], teacher: list[TeacherLabel], sealed: Mapping[str, str], trained: set[str]
) -> dict[str, list[tuple[str, str]]]:
    """What linear baselines learn from: gold, the teacher's labels, those of them that the student learned from, and
    all true labels, which nobody knows where the pool is a team's own. What people reviewed each of them learns,
    too."""
    valid = [row for row in teacher if row["valid"]]
    people = [(row["text"], row["label"]) for row in reviewed]
    return {
        "linear_gold": [(row["text"], row["label"]) for row in gold] + people,
        "linear_teacher": [(row["text"], row["label"]) for row in valid] + people,
        "linear_cleaned": [(row["text"], row["label"]) for row in valid if row["id"] in trained] + people,
        "linear_true": [(row["text"], sealed[row["id"]]) for row in teacher if row["id"] in sealed] + people
        if sealed
        else [],
    }


def timed_answers(model: Pipeline, texts: list[str]) -> tuple[list[str], dict[str, float]]:
    """What a linear model says, and the seconds it takes for a text among many, and milliseconds alone."""
    started = time.perf_counter()
    said = [str(label) for label in model.predict(texts)]
    seconds = (time.perf_counter() - started) / len(texts)
    alone = []
    for text in texts[:LATENCY_QUERIES]:
        started = time.perf_counter()
        model.predict([text])
        alone.append(time.perf_counter() - started)
    return said, {"seconds": seconds, "p50_ms": 1000 * float(pd.Series(alone).median())}


def columns_of_test(rows: list[Any]) -> dict[str, list[str | None]]:
    """The user's other columns (an id, a date), which came along as `raw.NAME`."""
    names = dict.fromkeys(name for row in rows for name in extra_columns(row))
    return {name: [row.get(name) for row in rows] for name in names}


def main() -> None:
    params, pair = load_params(), load_sidecar(paths.SIDECAR)
    test, gold = read_jsonl(paths.TEST), read_jsonl(paths.GOLD)
    teacher_pool, teacher_test = read_jsonl(paths.TEACHER_LABELS), read_jsonl(paths.TEACHER_TEST)
    sealed = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    actual = [row["label"] for row in test]
    calibration = load_calibration(paths.CALIBRATION)

    lessons = linear_lessons(
        gold, read_jsonl(paths.REVIEWED), teacher_pool, sealed, {row["id"] for row in read_jsonl(paths.SFT_TRAIN)}
    )
    with ThreadPoolExecutor(1) as beside:  # while the engines start
        fits = {arm: beside.submit(fitted_baseline, rows, params.seed) for arm, rows in lessons.items()}
        of_students = score_students(params, pair, test, read_jsonl(paths.OUT_OF_SCOPE), [*fits.values()])
    models = {arm: fit.result() for arm, fit in fits.items()}
    linear = {arm: timed_answers(model, [row["text"] for row in test]) for arm, model in models.items() if model}
    [(most_frequent, _)] = Counter(row["label"] for row in teacher_pool if row["valid"]).most_common(1)
    predicted = {arm: student.scores.predicted for arm, student in of_students.items()}
    predicted |= {"teacher": [row["label"] for row in teacher_test], "majority": [most_frequent] * len(test)}
    predicted |= {arm: said for arm, (said, _) in linear.items()}
    takes = {arm: effort for arm, (_, effort) in linear.items()} | {
        arm: {
            **mean_tokens(student.scores),
            "valid_free": student.valid_free,
            "seconds": student.scores.seconds / len(test),
            "p50_ms": 1000 * float(pd.Series(student.alone).median()),
        }
        for arm, student in of_students.items()
    }
    right = {
        arm: [label == true for label, true in zip(answers, actual, strict=True)] for arm, answers in predicted.items()
    }
    measured = {arm: measure(hits) for arm, hits in right.items()}
    of_pool = measure([row["valid"] and row["label"] == sealed[row["id"]] for row in teacher_pool]) if sealed else {}

    served_arm = f"tuned_{pair.program}"
    served, served_right = of_students[served_arm].scores, right[served_arm]
    as_reported = [max(probabilities.values(), default=0.0) for probabilities in served.probabilities]
    sure = [
        max(calibrated(probabilities, calibration.temperature).values(), default=0.0)
        for probabilities in served.probabilities
    ]
    bins = reliability(sure, served_right)
    # What a service that abstains below the threshold would have answered.
    answered = [
        hit
        for hit, value in zip(served_right, sure, strict=True)
        if calibration.threshold and value >= calibration.threshold
    ]
    # What no label fits: rows of other labels, or, where there is a label for them, its test rows.
    of_test = [scoped_confidence(probabilities, calibration.temperature) for probabilities in served.probabilities]
    inside = [text for text, label in zip(of_test, actual, strict=True) if label != NONE_OF_THESE]
    outside = [text for text, label in zip(of_test, actual, strict=True) if label == NONE_OF_THESE]
    outside += [
        scoped_confidence(reading.probabilities, calibration.temperature) for reading in of_students[served_arm].outside
    ]
    p50, p95 = pd.Series(of_students[served_arm].alone).quantile([0.5, 0.95])

    write_json(
        paths.METRICS,
        {
            "profile": params.profile,
            "source": params.raw.source,
            "style": pair.style,
            "labels": params.sft.labels,
            "test": {
                "n": len(test),
                **{
                    weights: {kind: measured[f"{weights}_{kind}"]["accuracy"] for kind in KINDS}
                    for weights in ("base", "tuned")
                },
                **{arm: measured[arm]["accuracy"] for arm in ("teacher", "majority", *linear)},
            },
            "teacher": {f"pool_{name}": value for name, value in of_pool.items()},
            # Rows more than the test's own at which the served student's interval would be half as wide.
            "rows_to_halve_interval": rows_to_halve(sum(served_right), len(test)),
            "interval": {
                arm: {name: figures[name] for name in ("accuracy", "low", "high", "n")}
                for arm, figures in measured.items()
            },
            # Of each arm; students and linear models also with what a query takes, many in flight (`seconds`) and alone
            # (`p50_ms`).
            "arms": {
                arm: {
                    "macro_f1": macro_f1(actual, answers),
                    "valid": sum(label in pair.labels for label in answers) / len(test),
                    **takes.get(arm, {}),
                }
                for arm, answers in predicted.items()
            },
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
                **mean_tokens(served),
                "queries_per_second": len(test) / served.seconds,
                "p50_ms": 1000 * float(p50),
                "p95_ms": 1000 * float(p95),
            },
            **({"outside": out_of_scope_figures(inside, outside, calibration.threshold)} if inside and outside else {}),
            # The served student's accuracy minus another's on the same rows: paired bootstrap, and p of McNemar's exact
            # test.
            "served_less": {
                arm: {
                    **dict(zip(("low", "high"), difference_interval(served_right, hits, params.seed), strict=True)),
                    "p": mcnemar(served_right, hits),
                }
                for arm, hits in right.items()
                if arm != served_arm
            },
        },
    )
    with whole_file(paths.PREDICTIONS) as draft:
        columns = {"id": [row["id"] for row in test], "actual": actual, **predicted, "confidence": sure}
        pd.DataFrame(columns | columns_of_test(test)).to_csv(draft, index=False)
    with whole_file(paths.CONFUSION) as draft:
        pd.DataFrame({"actual": actual, "predicted": served.predicted}).to_csv(draft, index=False)
    write_json(paths.RELIABILITY, bins)
    write_json(paths.COVERAGE, coverage_curve(sure, served_right))


if __name__ == "__main__":
    run_stage(main)
