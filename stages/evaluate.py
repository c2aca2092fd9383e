"""Score everything on the test rows: both students with both programs, the teacher, the linear baselines. Opens the
pool's true labels.

python -m stages.evaluate
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.parts.data.rows import Row, TeacherLabel, extra_columns
from stages.parts.encoder.student import read_student
from stages.parts.encoder.vectors import read_embeddings
from stages.parts.engines.requests import Prediction, ProgramRequests
from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.numbers.calibration import Calibration, PairCalibration, calibrated, load_calibration
from stages.parts.numbers.metrics import (
    AccuracyByArm,
    ArmFigures,
    Difference,
    Measure,
    Metrics,
    OutOfScopeFigures,
    PoolAccuracy,
    ProgramAccuracy,
    ScopeFigures,
    ServedFigures,
    save_metrics,
)
from stages.parts.numbers.out_of_scope import out_of_scope_figures, scope_scores, scoped_confidence, separation
from stages.parts.numbers.statistics import (
    calibration_p,
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
from stages.parts.run.files import read_jsonl, write_csv, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.scoring import Scores, check_tokens, latency, score
from stages.parts.students.serving import students
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar, program_state

LATENCY_QUERIES = 50
FREE_QUERIES = 200  # queried again with decoding that is not constrained to the labels


@dataclass(frozen=True)
class StudentAnswers:
    """One student with one program on the test rows.

    `seconds_alone` are the times of LATENCY_QUERIES queries sent one at a time. `valid_free` is the share of valid
    answers without constrained decoding. `out_of_scope` are the answers to texts that no label fits; only the served
    student has any.
    """

    scores: Scores
    seconds_alone: list[float]
    valid_free: float
    out_of_scope: list[Prediction]

    def figures(self) -> dict[str, float]:
        """Return what a query takes, under the names of ArmFigures."""
        return {
            **mean_tokens(self.scores),
            "valid_free": self.valid_free,
            "seconds": self.scores.seconds / len(self.scores.readings),
            "p50_ms": 1000 * float(np.median(self.seconds_alone)),
        }


@dataclass(frozen=True)
class Arm:
    """An arm's labels for the test rows, which of them are right, and what a query takes (names of ArmFigures)."""

    predicted: list[str]
    right: list[bool]
    figures: dict[str, float] = field(default_factory=dict)


def measure(right: Sequence[bool]) -> Measure:
    low, high = interval(sum(right), len(right))
    return Measure(accuracy=sum(right) / len(right), low=low, high=high, n=len(right))


def accuracy_by_arm(measured: Mapping[str, Measure]) -> AccuracyByArm:
    """Return the accuracies alone, the students' by weights and program."""

    def of_programs(weights: str) -> ProgramAccuracy:
        return ProgramAccuracy(
            plain=measured[f"{weights}_plain"].accuracy, optimized=measured[f"{weights}_optimized"].accuracy
        )

    in_process = ("encoder", "linear_")
    others = {name: found.accuracy for name, found in measured.items() if name.startswith(in_process)}
    teacher, majority = measured["teacher"], measured["majority"]
    return AccuracyByArm(
        n=teacher.n,
        base=of_programs("base"),
        tuned=of_programs("tuned"),
        teacher=teacher.accuracy,
        majority=majority.accuracy,
        **others,
    )


def mean_tokens(scores: Scores) -> dict[str, float]:
    return {
        kind: sum(getattr(reading, kind) for reading in scores.readings) / len(scores.readings)
        for kind in ("prompt_tokens", "completion_tokens")
    }


def score_students(
    params: Params, pair: Sidecar, test: list[Any], out_of_scope: list[Any], before: list[Future[Any]]
) -> dict[str, StudentAnswers]:
    """Return the answers of base_plain, base_optimized, tuned_plain and tuned_optimized to the test rows.

    If both programs of a student are equal, it is queried once. Engines start at once, but are queried only when
    `before` is done: other work on the processor would distort the measured times.
    """
    plain = IntentClassifier(pair.labels, pair.instructions, pair.style)
    checkpoint = Path(pair.checkpoint)
    arms: dict[str, StudentAnswers] = {}
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
                check_tokens(served, requests, paths.BASE)
                is_served = (weights, kind) == ("tuned", pair.program)
                unconstrained = score(served, free, test[:FREE_QUERIES], params.runtime.max_in_flight).predicted
                arms[f"{weights}_{kind}"] = StudentAnswers(
                    scores=score(served, requests, test, params.runtime.max_in_flight),
                    seconds_alone=latency(served, requests, [row["text"] for row in test[:LATENCY_QUERIES]]),
                    valid_free=sum(label in pair.labels for label in unconstrained) / len(unconstrained),
                    out_of_scope=score(served, requests, out_of_scope, params.runtime.max_in_flight).readings
                    if is_served and out_of_scope
                    else [],
                )
    return arms


def linear_rows(
    gold: list[Row], reviewed: list[Row], teacher: list[TeacherLabel], sealed: Mapping[str, str], trained: set[str]
) -> dict[str, list[tuple[str, str]]]:
    """Return the texts and labels that each linear baseline is fitted on: gold, the teacher's labels, those of them
    that the student was trained on, and all true labels (none for a pool without known labels). Reviewed rows are
    added to each.
    """
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


class Predictor(Protocol):
    """A model in this process: a linear one, or the encoder student."""

    def predict(self, texts: list[str]) -> Sequence[str]: ...


def timed_answers(model: Predictor, texts: list[str]) -> tuple[list[str], dict[str, float]]:
    """Return a model's labels, the seconds of a text among many, and the median milliseconds of one alone."""
    started = time.perf_counter()
    predicted = [str(label) for label in model.predict(texts)]
    seconds = (time.perf_counter() - started) / len(texts)
    alone = []
    for text in texts[:LATENCY_QUERIES]:
        started = time.perf_counter()
        model.predict([text])
        alone.append(time.perf_counter() - started)
    return predicted, {"seconds": seconds, "p50_ms": 1000 * float(np.median(alone))}


def confidences(scores: Scores, temperature: float) -> list[float]:
    """Return the probability of each row's most likely label, 0 for a row without probabilities."""
    return [max(calibrated(found, temperature).values(), default=0.0) for found in scores.probabilities]


def served_figures(
    pair: Sidecar, calibration: Calibration, answers: StudentAnswers, right: Sequence[bool]
) -> ServedFigures:
    """Return the figures of the served pair: its calibration, its speed, and what it answers at its threshold."""
    scores = answers.scores
    as_reported = [max(found.values(), default=0.0) for found in scores.probabilities]
    confidence = confidences(scores, calibration.temperature)
    answered = [
        hit
        for hit, value in zip(right, confidence, strict=True)
        if calibration.threshold and value >= calibration.threshold
    ]
    tokens = mean_tokens(scores)
    p50, p95 = np.quantile(answers.seconds_alone, [0.5, 0.95])
    return ServedFigures(
        checkpoint=Path(pair.checkpoint).name,
        program=pair.program,
        accuracy=sum(right) / len(right),
        invalid=sum(label not in pair.labels for label in scores.predicted),
        calibration_error=expected_calibration_error(reliability(confidence, right)),
        calibration_p=calibration_p(confidence, right),
        calibration_error_before=expected_calibration_error(reliability(as_reported, right)),
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        wanted_precision=calibration.wanted_precision,
        answered=len(answered) / len(right),
        precision=measure(answered) if answered else None,
        prompt_tokens=tokens["prompt_tokens"],
        completion_tokens=tokens["completion_tokens"],
        queries_per_second=len(right) / scores.seconds,
        p50_ms=1000 * float(p50),
        p95_ms=1000 * float(p95),
        promise=calibration.promise,
    )


def similarity_figures(teacher_pool: list[TeacherLabel], actual: Sequence[str]) -> ScopeFigures | None:
    """Return how well similarity to the pool tells out-of-scope texts apart; None without an encoder."""
    embeddings = read_embeddings()
    if embeddings is None:
        return None
    labelled = [row for row in teacher_pool if row["valid"]]
    pool = embeddings.of_rows(labelled)
    # A teacher without confidence is taken at its word.
    confidence = np.array([1.0 if row["confidence"] is None else row["confidence"] for row in labelled])
    inside = np.array([label != NONE_OF_THESE for label in actual])
    of_test, of_others = (scope_scores(embeddings[part], pool, confidence) for part in ("test", "out_of_scope"))
    return separation(of_test[inside], np.concatenate([of_test[~inside], of_others]))


def scope_figures(
    answers: StudentAnswers, actual: Sequence[str], calibration: Calibration, teacher_pool: list[TeacherLabel]
) -> OutOfScopeFigures | None:
    """Return how texts that no label fits are answered; None if the run has no such texts.

    They are rows of labels that were left out, or the test rows of `none_of_these`, if that is a label.
    """
    of_test = [scoped_confidence(found, calibration.temperature) for found in answers.scores.probabilities]
    inside = [text for text, label in zip(of_test, actual, strict=True) if label != NONE_OF_THESE]
    outside = [text for text, label in zip(of_test, actual, strict=True) if label == NONE_OF_THESE]
    outside += [scoped_confidence(reading.probabilities, calibration.temperature) for reading in answers.out_of_scope]
    if not inside or not outside:
        return None
    return out_of_scope_figures(inside, outside, calibration.threshold, similarity_figures(teacher_pool, actual))


def columns_of_test(rows: list[Any]) -> dict[str, list[str | None]]:
    """Return the columns of the user's own that came along with the rows (an id, a date), as `raw.NAME`."""
    names = dict.fromkeys(name for row in rows for name in extra_columns(row))
    return {name: [row.get(name) for row in rows] for name in names}


def main() -> None:
    params, pair = load_params(), load_sidecar(paths.SIDECAR)
    calibration = load_calibration(paths.CALIBRATION, PairCalibration)
    test, gold = read_jsonl(paths.TEST), read_jsonl(paths.GOLD)
    teacher_pool, teacher_test = read_jsonl(paths.TEACHER_LABELS), read_jsonl(paths.TEACHER_TEST)
    sealed = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    trained = {row["id"] for row in read_jsonl(paths.SFT_TRAIN)}
    actual, texts = [row["label"] for row in test], [row["text"] for row in test]

    # The linear models are fitted while the engines start.
    rows_by_model = linear_rows(gold, read_jsonl(paths.REVIEWED), teacher_pool, sealed, trained)
    with ThreadPoolExecutor(1) as beside:
        fits = {name: beside.submit(fitted_baseline, rows, params.seed) for name, rows in rows_by_model.items()}
        by_student = score_students(params, pair, test, read_jsonl(paths.OUT_OF_SCOPE), [*fits.values()])
    models: dict[str, Predictor] = {name: model for name, fit in fits.items() if (model := fit.result())}
    if encoder := read_student(paths.ENCODER):
        models["encoder"] = encoder
    in_process = {name: timed_answers(model, texts) for name, model in models.items()}
    [(most_frequent, _)] = Counter(row["label"] for row in teacher_pool if row["valid"]).most_common(1)

    def arm(predicted: list[str], figures: dict[str, float] | None = None) -> Arm:
        return Arm(predicted, [label == true for label, true in zip(predicted, actual, strict=True)], figures or {})

    arms = {name: arm(answers.scores.predicted, answers.figures()) for name, answers in by_student.items()}
    arms["teacher"] = arm([row["label"] for row in teacher_test])
    arms["majority"] = arm([most_frequent] * len(test))
    arms |= {name: arm(predicted, figures) for name, (predicted, figures) in in_process.items()}

    measured = {name: measure(each.right) for name, each in arms.items()}
    of_pool = measure([row["valid"] and row["label"] == sealed[row["id"]] for row in teacher_pool]) if sealed else None
    served_arm = f"tuned_{pair.program}"
    served, served_right = by_student[served_arm], arms[served_arm].right
    scope = scope_figures(served, actual, calibration, teacher_pool)
    metrics = Metrics(
        profile=params.profile,
        source=params.raw.source,
        style=pair.style,
        labels=params.sft.labels,
        test=accuracy_by_arm(measured),
        teacher=PoolAccuracy(**{f"pool_{name}": value for name, value in of_pool} if of_pool else {}),
        rows_to_halve_interval=rows_to_halve(sum(served_right), len(test)),
        interval=measured,
        arms={
            name: ArmFigures(
                macro_f1=macro_f1(actual, each.predicted),
                valid=sum(label in pair.labels for label in each.predicted) / len(test),
                **each.figures,
            )
            for name, each in arms.items()
        },
        served=served_figures(pair, calibration, served, served_right),
        **({"outside": scope} if scope else {}),
        served_less={
            name: Difference(
                **dict(zip(("low", "high"), difference_interval(served_right, each.right), strict=True)),
                p=mcnemar(served_right, each.right),
            )
            for name, each in arms.items()
            if name != served_arm
        },
    )
    save_metrics(metrics, paths.METRICS)

    confidence = confidences(served.scores, calibration.temperature)
    predicted = {name: each.predicted for name, each in arms.items()}
    columns = {"id": [row["id"] for row in test], "actual": actual, **predicted, "confidence": confidence}
    columns |= columns_of_test(test)
    write_csv(paths.PREDICTIONS, columns, zip(*columns.values(), strict=True))
    write_csv(paths.CONFUSION, ["actual", "predicted"], zip(actual, served.scores.predicted, strict=True))
    write_json(paths.RELIABILITY, reliability(confidence, served_right))
    write_json(paths.COVERAGE, coverage_curve(confidence, served_right))


if __name__ == "__main__":
    run_stage(main)
