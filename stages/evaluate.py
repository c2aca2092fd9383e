"""Score everything on the test rows: both students with both programs, the teacher, the linear baselines. The one stage that may read the
pool's true labels.

python -m stages.evaluate
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from stages.parts import lm, paths
from stages.parts.calibration import calibrated, load_calibration
from stages.parts.classify import Scores, score
from stages.parts.linear import baseline_model
from stages.parts.params import Params, load_params
from stages.parts.program_file import load_program, program_state
from stages.parts.records import Query, TeacherLabel, read_json, read_jsonl, whole_file, write_json
from stages.parts.stage import run_stage
from stages.parts.statistics import coverage_curve, difference_interval, expected_calibration_error, interval, reliability
from stages.parts.students import students
from stages.parts.task import IntentClassifier

LATENCY_QUERIES = 50
KINDS = ("plain", "optimized")


def measure(right: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its interval and count."""
    low, high = interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def latency(program: IntentClassifier, queries: Sequence[str]) -> dict[str, float]:
    """Median and 95th percentile of one query at a time, in milliseconds."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        program(query=query)
        seconds.append(time.perf_counter() - started)
    p50, p95 = pd.Series(seconds).quantile([0.5, 0.95])
    return {"p50_ms": 1000 * float(p50), "p95_ms": 1000 * float(p95)}


Arm = tuple[str, str]  # weights (base or tuned) and program (plain or optimized)


@dataclass
class Students:
    """The four arms' scores and seconds, and how long one query takes alone in the arm that is served."""

    scores: dict[Arm, Scores] = field(default_factory=dict)
    seconds: dict[Arm, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)


def score_students(params: Params, labels: list[str], test: list[Any], adapter: str, served_program: str) -> Students:
    """Run base and tuned student with both programs over the test rows; equal prompts once."""
    instructions, threads = params.program.instructions, params.runtime.threads
    plain = IntentClassifier(labels, instructions, params.style)
    most_tokens = lm.max_tokens(params.style, labels, paths.BASE)
    found = Students()
    with closing(students(paths.BASE, {adapter: paths.LORA / adapter}, params)) as engines:
        for name, served in engines:
            weights = "base" if name == "base" else "tuned"
            optimized = load_program(paths.PROGRAMS / f"{weights}.json", labels, instructions, params.style)
            with lm.using_student(served, name, params.style, labels, most_tokens):
                for kind, program in (("plain", plain), ("optimized", optimized)):
                    arm, twin = (weights, kind), (weights, "plain")
                    if kind == "optimized" and program_state(program) == program_state(plain):
                        found.scores[arm], found.seconds[arm] = found.scores[twin], found.seconds[twin]
                        continue
                    started = time.monotonic()
                    found.scores[arm] = score(program, test, threads)
                    found.seconds[arm] = time.monotonic() - started
                if weights == "tuned":
                    served_one = optimized if served_program == "optimized" else plain
                    found.alone = latency(served_one, [row["text"] for row in test[:LATENCY_QUERIES]])
    return found


def linear_arms(gold: list[Query], teacher: list[TeacherLabel], sealed: dict[str, str], test: list[Any], seed: int) -> dict[str, list[str]]:
    """What the linear baseline says of the test rows after learning from gold, from the teacher, and from all true labels."""
    valid = [row for row in teacher if row["valid"]]
    lessons = {
        "linear_gold": [(row["text"], row["label"]) for row in gold],
        "linear_teacher": [(row["text"], row["label"]) for row in valid],
        "linear_true": [(row["text"], sealed[row["id"]]) for row in teacher],
    }
    texts = [row["text"] for row in test]
    return {
        arm: [str(label) for label in baseline_model(seed).fit(*map(list, zip(*rows, strict=True))).predict(texts)]
        for arm, rows in lessons.items()
    }


def main() -> None:
    params = load_params()
    labels, dev = read_json(paths.LABELS), read_json(paths.DEV_REPORT)
    test, gold = read_jsonl(paths.TEST), read_jsonl(paths.GOLD)
    teacher_pool, teacher_test = read_jsonl(paths.TEACHER_LABELS), read_jsonl(paths.TEACHER_TEST)
    sealed = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    actual = [row["label"] for row in test]
    calibration = load_calibration(paths.CALIBRATION)

    students = score_students(params, labels, test, dev["adapter"], dev["program"])
    linear = linear_arms(gold, teacher_pool, sealed, test, params.seed)
    predicted = {f"{weights}_{kind}": scores.predicted for (weights, kind), scores in students.scores.items()}
    predicted |= {"teacher": [row["label"] for row in teacher_test]} | linear
    right = {arm: [label == true for label, true in zip(answers, actual, strict=True)] for arm, answers in predicted.items()}
    measured = {arm: measure(hits) for arm, hits in right.items()}
    of_pool = measure([row["valid"] and row["label"] == sealed[row["id"]] for row in teacher_pool])

    served_arm = ("tuned", dev["program"])
    served, served_right = students.scores[served_arm], right["_".join(served_arm)]
    as_reported = [max(found.values(), default=0.0) for found in served.probabilities]
    sure = [max(calibrated(found, calibration.temperature).values(), default=0.0) for found in served.probabilities]
    bins = reliability(sure, served_right)
    # What a service that abstains below the threshold would have answered.
    answered = [hit for hit, value in zip(served_right, sure, strict=True) if calibration.threshold and value >= calibration.threshold]

    write_json(
        paths.METRICS,
        {
            "profile": params.profile,
            "source": params.source,
            "style": params.style,
            "labels": params.sft.labels,
            "test": {
                "n": len(test),
                **{weights: {kind: measured[f"{weights}_{kind}"]["accuracy"] for kind in KINDS} for weights in ("base", "tuned")},
                **{arm: measured[arm]["accuracy"] for arm in ("teacher", *linear)},
            },
            "teacher": {f"pool_{name}": value for name, value in of_pool.items()},
            "interval": {arm: {"low": found["low"], "high": found["high"]} for arm, found in measured.items()},
            "served": {
                "adapter": dev["adapter"],
                "program": dev["program"],
                "accuracy": measured["_".join(served_arm)]["accuracy"],
                "invalid": sum(label not in labels for label in served.predicted),
                "calibration_error": expected_calibration_error(bins),
                "calibration_error_before": expected_calibration_error(reliability(as_reported, served_right)),
                "temperature": calibration.temperature,
                "threshold": calibration.threshold,
                "wanted_precision": calibration.wanted_precision,
                "answered": len(answered) / len(test),
                "precision": measure(answered) if answered else None,
                "prompt_tokens": served.prompt_tokens / len(test),
                "completion_tokens": served.completion_tokens / len(test),
                "queries_per_second": len(test) / students.seconds[served_arm],
                **students.alone,
            },
            # The served student's accuracy less another's, on the same rows: an interval without 0 is a real difference.
            "served_less": {
                arm: dict(zip(("low", "high"), difference_interval(served_right, right[arm], params.seed), strict=True))
                for arm in ("teacher", *linear)
            },
        },
    )
    with whole_file(paths.PREDICTIONS) as draft:
        pd.DataFrame({"id": [row["id"] for row in test], "actual": actual, **predicted, "confidence": sure}).to_csv(draft, index=False)
    with whole_file(paths.CONFUSION) as draft:
        pd.DataFrame({"actual": actual, "predicted": served.predicted}).to_csv(draft, index=False)
    write_json(paths.RELIABILITY, bins)
    write_json(paths.COVERAGE, coverage_curve(sure, served_right))


if __name__ == "__main__":
    run_stage(main)
