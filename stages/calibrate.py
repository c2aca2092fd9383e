"""Calibrate each student's confidence on rows it was not trained on, choose the confidence below which it abstains, and
choose the student that is served.

python -m stages.calibrate
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.parts.numbers.calibration import (
    Calibration,
    PairCalibration,
    StudentCalibration,
    best_temperature,
    calibrated,
)
from stages.parts.numbers.choice import CHEAPEST_FIRST, IN_PROCESS, Contender, ServedChoice
from stages.parts.numbers.metrics import PromiseFigures
from stages.parts.numbers.promise import (
    CoveragePoint,
    GoldEvidence,
    certified_point,
    coverage_points,
    likely_point,
    more_rows_needed,
    same_quantiles,
)
from stages.parts.numbers.statistics import difference_interval
from stages.parts.run import paths
from stages.parts.run.files import folder_sha256, read_json, read_jsonl, write_json
from stages.parts.run.params import Params, load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.program_file import load_sidecar
from stages.parts.task.student_file import read_student_file

OUTSIDE = 0.03  # share of gold rows that count as out of scope: a point of coverage, for half of what is outside


@dataclass(frozen=True)
class HeldOutRow:
    """A row that the student was not trained on: its label and who gave it, the teacher's confidence in it, and the
    student's prediction with its calibrated confidence, and whether its text is one that a label fits.
    """

    id: str
    label: str
    by: str
    teacher_confidence: float | None
    predicted: str
    confidence: float
    in_scope: bool

    @property
    def answered(self) -> bool:
        """Whether a service that is sure enough gives its label."""
        return self.in_scope and self.predicted != NONE_OF_THESE


def label_certainty(row: dict[str, Any], teacher_right: float) -> float:
    """Return the probability that a held-out row's label is true: 1 if a person gave it, else the teacher's confidence,
    or without one its accuracy on gold rows.
    """
    if row["by"] == "hand":
        return 1.0
    return teacher_right if row["confidence"] is None else float(row["confidence"])


def gold_was_learned(params: Params) -> bool:
    """Return whether the teacher, and through it the student, learned the gold rows' labels."""
    return params.teacher.kind == "linear" or read_json(paths.TEACHER_REPORT).get("prompt") == "examples"


def least_familiarity(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the familiarity below which a text is out of scope; None if the student can't tell.

    A person has labelled gold rows, so a label fits them, and no student has learned from their texts: nearly all of
    them lie above it, whatever the pool holds.
    """
    found = [
        row["familiarity"]
        for row in rows
        if row["by"] == "hand" and row["label"] != NONE_OF_THESE and row.get("familiarity") is not None
    ]
    return float(np.quantile(found, OUTSIDE)) if found else None


def calibrated_rows(
    params: Params, held_out: Path, gold: dict[str, str]
) -> tuple[list[HeldOutRow], float, float | None]:
    """Return the rows in `held_out` for which the student names a label, the temperature of its probabilities, and the
    least familiarity of a text in scope.

    Gold rows that the student learned through its teacher set no temperature: on them it is right more often.
    """
    teacher_gold = read_jsonl(paths.TEACHER_GOLD)
    # Laplace's rule of succession
    teacher_right = (sum(row["label"] == gold[row["id"]] for row in teacher_gold) + 1) / (len(teacher_gold) + 2)
    rows = [row for row in read_jsonl(held_out) if row["probabilities"]]
    if not rows:  # a student too small to finish its reasoning
        return [], 1.0, None
    learned = gold_was_learned(params)
    unseen = [row for row in rows if row["by"] == "teacher" or not learned] or rows
    temperature = best_temperature(
        [row["probabilities"] for row in unseen],
        [row["label"] for row in unseen],
        [label_certainty(row, teacher_right) for row in unseen],
    )
    found, least = [], least_familiarity(rows)
    for row in rows:
        predicted, confidence = next(iter(calibrated(row["probabilities"], temperature).items()))
        in_scope = least is None or row["familiarity"] >= least
        found.append(HeldOutRow(row["id"], row["label"], row["by"], row["confidence"], predicted, confidence, in_scope))
    return found, temperature, least


def gold_evidence(
    params: Params, gold: dict[str, str], on_gold: list[HeldOutRow], dev: list[HeldOutRow]
) -> tuple[GoldEvidence, np.ndarray] | None:
    """Return what the gold rows say about the answers to dev rows, and which dev answers count [N]; None if nothing.

    If the teacher has not learned from gold labels, nor has the student, and its own predictions of gold rows count.
    Otherwise the student has learned them through its teacher: on the embedded profile it is right on 87 % of gold rows
    and 71 % of others. Then the teacher's cross-fitted predictions stand in for the student's, with the student's
    confidence at the same quantile, and an answer that differs from the teacher's counts as wrong. A prompt that was
    optimised on the gold rows leaves no row unseen.
    """
    report = read_json(paths.TEACHER_REPORT)
    if "gold_accuracy" not in report or not dev:
        return None
    if not gold_was_learned(params):
        rows = [row for row in on_gold if row.answered]
        confidence = np.array([row.confidence for row in rows])
        right = np.array([row.predicted == gold[row.id] for row in rows], bool)
        return (GoldEvidence(confidence, right), np.ones(len(dev))) if rows else None
    outside = {row.id for row in on_gold if not row.in_scope}
    cross_fitted = [
        row for row in read_jsonl(paths.TEACHER_GOLD) if row["label"] != NONE_OF_THESE and row["id"] not in outside
    ]
    # a served row's label may be of another teacher, without a confidence
    reported = [row.teacher_confidence for row in dev if row.teacher_confidence is not None]
    if not cross_fitted or not reported or any(row["confidence"] is None for row in cross_fitted):
        return None
    confidence = same_quantiles(
        np.array([row["confidence"] for row in cross_fitted]),
        np.array(reported),
        np.array([row.confidence for row in dev]),
    )
    right = np.array([row["label"] == gold[row["id"]] for row in cross_fitted], bool)
    return GoldEvidence(confidence, right), np.array([float(row.predicted == row.label) for row in dev])


def promise_of(params: Params, gold: dict[str, str], rows: list[HeldOutRow]) -> PromiseFigures | None:
    """Return what the gold rows certify about the answers to the dev rows."""
    # Leave none_of_these out: its easy hits would hide wrong labels.
    dev = [row for row in rows if row.by == "teacher" and row.answered]
    found = gold_evidence(params, gold, [row for row in rows if row.by == "hand"], dev)
    if found is None:
        return None
    evidence, counts = found
    confidence, wanted = np.array([row.confidence for row in dev]), params.calibrate.precision
    points = coverage_points(evidence, confidence, counts)
    certified, more = certified_point(points, wanted), None
    if certified is None:
        more = more_rows_needed(evidence, confidence, counts, wanted)
    point: CoveragePoint = certified or likely_point(points, wanted) or points[0]
    return PromiseFigures(
        kept=certified is not None,
        threshold=point.threshold,
        # Of all dev rows: those that got none_of_these, or are out of scope, are not answered.
        coverage=point.coverage * len(dev) / sum(row.by == "teacher" for row in rows),
        estimate=point.estimate,
        bound=point.bound,
        gold_rows=len(evidence.right),
        more_gold_rows=more,
    )


def describe(calibration: Calibration) -> str:
    """Return what the service will do, in one or two sentences."""
    promise, wanted = calibration.promise, f"{calibration.wanted_precision:.0%}"
    if promise is None:
        found = (
            f"the gold rows can't certify a threshold for {wanted} right answers: the teacher's prompt was tuned on "
            "them, it reports no confidence, or the student names no label"
        )
    elif promise.kept:
        found = (
            f"certified by {promise.gold_rows} gold rows: at least {promise.bound:.1%} right answers on "
            f"{promise.coverage:.0%} of the queries"
        )
    else:
        rows = f"{promise.more_gold_rows} more" if promise.more_gold_rows else "a better teacher, not more rows,"
        found = (
            f"{promise.gold_rows} gold rows certify no threshold for {wanted} right answers, {rows} would; now they "
            f"certify {promise.bound:.1%} on {promise.coverage:.0%} of the queries"
        )
    if calibration.threshold is None:
        return f"{found}. The service abstains on every query (calibrate.when_uncertified)"
    return f"{found}. Temperature {calibration.temperature:.2f}, threshold {calibration.threshold:.2f}"


def calibration_of(params: Params, gold: dict[str, str], held_out: Path) -> Calibration:
    """Return the calibration of the student that made the predictions in `held_out`."""
    rows, temperature, least = calibrated_rows(params, held_out, gold)
    promise = promise_of(params, gold, rows)
    used = promise
    if promise is None or (not promise.kept and params.calibrate.when_uncertified == "abstain"):
        used = None
    elif not promise.kept and promise.estimate < params.calibrate.precision:
        used = None  # not even the estimate is good enough at any threshold
    return Calibration(
        temperature=temperature,
        threshold=used.threshold if used else None,
        wanted_precision=params.calibrate.precision,
        rows=len(rows),
        coverage=used.coverage if used else 0.0,
        precision=used.estimate if used else None,
        promise=promise,
        least_familiarity=least,
    )


def agreements(held_out: Path) -> dict[str, bool]:
    """Return by id whether a student's label of a dev row is the teacher's."""
    return {
        row["id"]: next(iter(row["probabilities"]), None) == row["label"]
        for row in read_jsonl(held_out)
        if row["by"] == "teacher"
    }


def choice(
    calibrations: Mapping[Contender, Calibration], agreed: Mapping[Contender, Sequence[bool]]
) -> tuple[Contender, str]:
    """Return the cheapest contender that dev rows do not show to be worse than the best, and the reason.

    A contender that would abstain on every query is left out, unless all would.
    """
    ranked = [name for name in CHEAPEST_FIRST if name in agreed]
    answering = [name for name in ranked if calibrations[name].threshold is not None] or ranked
    best = max(answering, key=lambda name: sum(agreed[name]))
    chosen = next(name for name in answering if difference_interval(agreed[best], agreed[name])[0] <= 0)
    rows = len(agreed[best])
    shares = ", ".join(f"{name} {100 * sum(agreed[name]) / rows:.1f}\N{NO-BREAK SPACE}%" for name in ranked)
    if chosen != best:
        verdict = f"{chosen} is the cheapest not shown to be worse than {best}"
    elif chosen == answering[0]:
        verdict = f"{best} is the best, and the cheapest"
    else:
        verdict = f"each cheaper one is shown to be worse than {best}"
    return chosen, f"agreement with the teacher on {rows} dev rows: {shares}; {verdict}"


def main() -> None:
    params, pair = load_params(), load_sidecar(paths.SIDECAR)
    gold = {row["id"]: row["label"] for row in read_jsonl(paths.GOLD)}

    of_decoder = calibration_of(params, gold, paths.HELD_OUT)
    of_pair = PairCalibration(
        checkpoint_sha256=pair.checkpoint_sha256, program_sha256=pair.program_sha256, **dict(of_decoder)
    )
    write_json(paths.CALIBRATION, of_pair.model_dump())
    calibrations: dict[Contender, Calibration] = {"decoder": of_decoder}
    agreed: dict[Contender, dict[str, bool]] = {"decoder": agreements(paths.HELD_OUT)}
    for name, (folder, held_out, path) in IN_PROCESS.items():
        if read_student_file(folder) is None:
            write_json(path, None)
            continue
        found = calibration_of(params, gold, held_out)
        write_json(path, StudentCalibration(student_sha256=folder_sha256(folder), **dict(found)).model_dump())
        calibrations[name], agreed[name] = found, agreements(held_out)
    for name, calibration in calibrations.items():
        print(f"{name}: {describe(calibration)}")

    dev = list(agreed["decoder"])
    serve, why = choice(calibrations, {name: [rows[row] for row in dev] for name, rows in agreed.items()})
    write_json(paths.SERVED, ServedChoice(serve=serve, why=why, profile=params.profile).model_dump())
    print(f"serve the {serve}: {why}")


if __name__ == "__main__":
    run_stage(main)
