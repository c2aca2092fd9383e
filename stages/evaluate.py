"""Score everything on the test rows: the students, the base and the tuned decoder with both programs, the teacher, the
linear baselines. Opens the pool's true labels.

python -m stages.evaluate
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import numpy as np

from stages.parts.data.rows import Row, TeacherLabel, extra_columns
from stages.parts.engines.requests import Prediction, ProgramRequests
from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.numbers.calibration import Calibration, PairCalibration, calibrated, load_calibration
from stages.parts.numbers.choice import IN_PROCESS, load_choice
from stages.parts.numbers.contenders import (
    ContenderAnswers,
    contender_figures,
    difference,
    measure,
)
from stages.parts.numbers.metrics import (
    ARM_OF,
    AccuracyByArm,
    ArmFigures,
    ContenderFigures,
    Measure,
    Metrics,
    OutOfScopeFigures,
    PoolAccuracy,
    ProgramAccuracy,
    ScopeFigures,
    ServedFigures,
    save_metrics,
)
from stages.parts.numbers.out_of_scope import out_of_scope_figures, scoped_confidence, separation
from stages.parts.numbers.statistics import (
    coverage_curve,
    expected_calibration_error,
    macro_f1,
    reliability,
    rows_to_halve,
)
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_csv, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.footprint import Footprint, folder_mb, footprint, memory_of_port
from stages.parts.students.local import LocalClassifier, load_local
from stages.parts.students.prediction import CalibratedPrediction, abstention
from stages.parts.students.scoring import Scores, check_tokens, latency, score
from stages.parts.students.serving import is_adapter, students
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar, program_state
from stages.parts.task.student_file import read_student_file

LATENCY_QUERIES = 50
Answer = TypeVar("Answer", bound=Sequence[Any] | np.ndarray)
FREE_QUERIES = 200  # queried again with decoding that is not constrained to the labels


@dataclass(frozen=True)
class StudentAnswers:
    """One student with one program on the test rows.

    `seconds_alone` are the times of LATENCY_QUERIES queries sent one at a time. `valid_free` is the share of valid
    answers without constrained decoding. `out_of_scope` are the answers to texts that no label fits; only the served
    pair has any. `footprint` is that of its weights and engine, whose start is shared with another engine's.
    """

    scores: Scores
    seconds_alone: list[float]
    valid_free: float
    out_of_scope: list[Prediction]
    footprint: Footprint = field(default_factory=Footprint)

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
    started = time.monotonic()
    files_mb = folder_mb(checkpoint) + (folder_mb(paths.BASE) if is_adapter(checkpoint) else 0)
    start_s = None
    with closing(students(paths.BASE, {checkpoint.name: checkpoint}, params)) as engines:
        for name, served in engines:
            start_s = start_s or time.monotonic() - started
            took = Footprint(files_mb, memory_of_port(urlsplit(served.api_base).port), start_s)
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
                    footprint=took,
                )
    return arms


def linear_rows(
    gold: list[Row], reviewed: list[Row], teacher: list[TeacherLabel], sealed: Mapping[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """Return the texts and labels that each linear baseline is fitted on: gold, the teacher's labels, and all true
    labels (none for a pool without known labels). Reviewed rows are added to each.
    """
    people = [(row["text"], row["label"]) for row in reviewed]
    return {
        "linear_gold": [(row["text"], row["label"]) for row in gold] + people,
        "linear_teacher": [(row["text"], row["label"]) for row in teacher if row["valid"]] + people,
        "linear_true": [(row["text"], sealed[row["id"]]) for row in teacher if row["id"] in sealed] + people
        if sealed
        else [],
    }


@dataclass(frozen=True)
class Timed(Generic[Answer]):
    """A function's `answers` to all texts at once, their `seconds`, and those of LATENCY_QUERIES texts `alone`."""

    answers: Answer
    seconds: float
    alone: list[float]

    def figures(self) -> dict[str, float]:
        """Return what a query takes, under the names of ArmFigures."""
        return {"seconds": self.seconds / len(self.answers), "p50_ms": 1000 * float(np.median(self.alone))}


def timed(answer: Callable[[list[str]], Answer], texts: list[str]) -> Timed[Answer]:
    started = time.perf_counter()
    answers = answer(texts)
    seconds, alone = time.perf_counter() - started, []
    for text in texts[:LATENCY_QUERIES]:
        started = time.perf_counter()
        answer([text])
        alone.append(time.perf_counter() - started)
    return Timed(answers, seconds, alone)


def in_process_answers(student: LocalClassifier, found: Timed[list[CalibratedPrediction]]) -> ContenderAnswers:
    """Return the answers of a student in this process, as the service gives them."""
    return ContenderAnswers(
        predicted=[answer.label for answer in found.answers],
        confidence=[answer.confidence for answer in found.answers],
        answered=[answer.abstained is None for answer in found.answers],
        calibration=student.calibration,
        seconds=found.seconds,
        seconds_alone=found.alone,
        **asdict(footprint(student.folder)),
    )


def decoder_answers(answers: StudentAnswers, calibration: Calibration) -> ContenderAnswers:
    """Return the answers of the decoder pair at its temperature and threshold."""
    predicted = answers.scores.predicted
    confidence = [
        max(calibrated(found, calibration.temperature).values(), default=0.0) for found in answers.scores.probabilities
    ]
    return ContenderAnswers(
        predicted=predicted,
        confidence=confidence,
        answered=[
            abstention(label, value, calibration) is None for label, value in zip(predicted, confidence, strict=True)
        ],
        calibration=calibration,
        seconds=answers.scores.seconds,
        seconds_alone=answers.seconds_alone,
        **asdict(answers.footprint),
    )


def teacher_answers(rows: list[TeacherLabel]) -> ContenderAnswers:
    """Return the teacher's labels, with its confidence if it reports one: 0 of an answer that is no label."""
    reports_any = any(row["confidence"] is not None for row in rows)
    confidence = [row["confidence"] or 0.0 for row in rows] if reports_any else []
    return ContenderAnswers([row["label"] for row in rows], confidence)


def served_figures(
    pair: Sidecar, calibration: Calibration, answers: StudentAnswers, figures: ContenderFigures, right: Sequence[bool]
) -> ServedFigures:
    """Return the figures of the decoder pair: those of any contender, and those that only a decoder has."""
    scores = answers.scores
    as_reported = [max(found.values(), default=0.0) for found in scores.probabilities]
    tokens = mean_tokens(scores)
    assert figures.calibration_error is not None and figures.calibration_p is not None and figures.answered is not None
    assert figures.p50_ms is not None and figures.p95_ms is not None and figures.rows_per_second is not None
    return ServedFigures(
        checkpoint=Path(pair.checkpoint).name,
        program=pair.program,
        accuracy=figures.accuracy.accuracy,
        invalid=sum(label not in pair.labels for label in scores.predicted),
        calibration_error=figures.calibration_error,
        calibration_p=figures.calibration_p,
        calibration_error_before=expected_calibration_error(reliability(as_reported, right)),
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        wanted_precision=calibration.wanted_precision,
        answered=figures.answered,
        precision=figures.precision,
        prompt_tokens=tokens["prompt_tokens"],
        completion_tokens=tokens["completion_tokens"],
        queries_per_second=figures.rows_per_second,
        p50_ms=figures.p50_ms,
        p95_ms=figures.p95_ms,
        promise=calibration.promise,
    )


def familiarity_figures(
    found: Sequence[CalibratedPrediction], others: Sequence[CalibratedPrediction], test: list[Any]
) -> ScopeFigures:
    """Return how well the encoder student tells texts that no label fits from others, by what it `found` of the test
    rows and of `others` that no label fits.
    """
    inside = [answer for answer, row in zip(found, test, strict=True) if row["label"] != NONE_OF_THESE]
    outside = [answer for answer, row in zip(found, test, strict=True) if row["label"] == NONE_OF_THESE] + [*others]
    return separation(
        np.array([answer.familiarity for answer in inside]),
        np.array([answer.familiarity for answer in outside]),
        float(np.mean([answer.abstained is None and answer.label != NONE_OF_THESE for answer in outside])),
    )


def scope_figures(
    answers: StudentAnswers,
    test: list[Any],
    calibration: Calibration,
    of_encoder: tuple[Sequence[CalibratedPrediction], Sequence[CalibratedPrediction]] | None,
) -> OutOfScopeFigures | None:
    """Return how texts that no label fits are answered; None if the run has no such texts.

    They are rows of labels that were left out, or the test rows of `none_of_these`, if that is a label. `of_encoder` is
    what the encoder student says of the test rows and of the left-out ones, None if the run has no such student.
    """
    of_test = [scoped_confidence(found, calibration.temperature) for found in answers.scores.probabilities]
    inside = [text for text, row in zip(of_test, test, strict=True) if row["label"] != NONE_OF_THESE]
    outside = [text for text, row in zip(of_test, test, strict=True) if row["label"] == NONE_OF_THESE]
    outside += [scoped_confidence(reading.probabilities, calibration.temperature) for reading in answers.out_of_scope]
    if not inside or not outside:
        return None
    familiarity = familiarity_figures(*of_encoder, test) if of_encoder else None
    return out_of_scope_figures(inside, outside, calibration.threshold, familiarity)


def columns_of_test(rows: list[Any]) -> dict[str, list[str | None]]:
    """Return the columns of the user's own that came along with the rows (an id, a date), as `raw.NAME`."""
    names = dict.fromkeys(name for row in rows for name in extra_columns(row))
    return {name: [row.get(name) for row in rows] for name in names}


def main() -> None:
    params, pair = load_params(), load_sidecar(paths.SIDECAR)
    calibration = load_calibration(paths.CALIBRATION, PairCalibration)
    test, gold, out_of_scope = (read_jsonl(path) for path in (paths.TEST, paths.GOLD, paths.OUT_OF_SCOPE))
    teacher_pool, teacher_test = read_jsonl(paths.TEACHER_LABELS), read_jsonl(paths.TEACHER_TEST)
    sealed = {row["id"]: row["label"] for row in read_jsonl(paths.SEALED)}
    actual, texts = [row["label"] for row in test], [row["text"] for row in test]

    # The linear models are fitted while the engines start.
    rows_by_model = linear_rows(gold, read_jsonl(paths.REVIEWED), teacher_pool, sealed)
    with ThreadPoolExecutor(1) as beside:
        fits = {name: beside.submit(fitted_baseline, rows, params.seed) for name, rows in rows_by_model.items()}
        by_student = score_students(params, pair, test, out_of_scope, [*fits.values()])
    baselines = {name: timed(model.predict, texts) for name, fit in fits.items() if (model := fit.result())}
    [(most_frequent, _)] = Counter(row["label"] for row in teacher_pool if row["valid"]).most_common(1)

    served_arm = f"tuned_{pair.program}"
    served = by_student[served_arm]
    local = {name: load_local(folder) for name, (folder, _, _) in IN_PROCESS.items() if read_student_file(folder)}
    in_process = {name: timed(student.classify, texts) for name, student in local.items()}
    contenders: dict[str, ContenderAnswers] = {
        name: in_process_answers(student, in_process[name]) for name, student in local.items()
    }
    contenders |= {"decoder": decoder_answers(served, calibration), "teacher": teacher_answers(teacher_test)}

    def arm(predicted: list[str], times: dict[str, float] | None = None) -> Arm:
        return Arm(predicted, [label == true for label, true in zip(predicted, actual, strict=True)], times or {})

    arms = {name: arm(answers.scores.predicted, answers.figures()) for name, answers in by_student.items()}
    arms["teacher"] = arm([row["label"] for row in teacher_test])
    arms["majority"] = arm([most_frequent] * len(test))
    arms |= {name: arm([*map(str, found.answers)], found.figures()) for name, found in baselines.items()}
    arms |= {ARM_OF[name]: arm([*contenders[name].predicted], found.figures()) for name, found in in_process.items()}

    measured = {name: measure(each.right) for name, each in arms.items()}
    of_pool = measure([row["valid"] and row["label"] == sealed[row["id"]] for row in teacher_pool]) if sealed else None
    served_right, confidence = arms[served_arm].right, contenders["decoder"].confidence
    choice = load_choice(paths.SERVED)
    arm_of = {name: arms[ARM_OF.get(name, served_arm)] for name in contenders}
    best = max(arm_of, key=lambda name: sum(arm_of[name].right))
    figures = {
        name: contender_figures(found, actual, None if name == best else arm_of[best].right)
        for name, found in contenders.items()
    }
    of_encoder = None
    if encoder := local.get("encoder"):
        of_encoder = in_process["encoder"].answers, encoder.classify([row["text"] for row in out_of_scope])
    scope = scope_figures(served, test, calibration, of_encoder)
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
        served=served_figures(pair, calibration, served, figures["decoder"], served_right),
        **({"outside": scope} if scope else {}),
        served_less={name: difference(served_right, each.right) for name, each in arms.items() if name != served_arm},
        serve=choice.serve,
        why=choice.why,
        contenders=figures,
    )
    save_metrics(metrics, paths.METRICS)

    predicted = {name: each.predicted for name, each in arms.items()}
    columns = {"id": [row["id"] for row in test], "actual": actual, **predicted, "confidence": confidence}
    columns |= {f"{name}_confidence": contenders[name].confidence for name in local}
    columns |= columns_of_test(test)
    write_csv(paths.PREDICTIONS, columns, zip(*columns.values(), strict=True))
    chosen = contenders[choice.serve]
    write_csv(paths.CONFUSION, ["actual", "predicted"], zip(actual, chosen.predicted, strict=True))
    write_json(paths.RELIABILITY, reliability(chosen.confidence, arm_of[choice.serve].right))
    write_json(paths.COVERAGE, coverage_curve(chosen.confidence, arm_of[choice.serve].right))


if __name__ == "__main__":
    run_stage(main)
