"""Label the pool with the teacher through the DSPy program; also the test rows, to compare the student with it, and the
gold rows, to judge it.

python -m stages.teacher
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, repeat
from typing import Any

from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.engines.requests import Outcome
from stages.parts.run import paths
from stages.parts.run.files import iter_jsonl, jsonl_writer, write_json, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.teachers.confusions import confusions
from stages.parts.teachers.inputs import TeacherInputs, read_inputs
from stages.parts.teachers.labelling import LabellingRun, teacher_label
from stages.parts.teachers.prompt_file import OPTIMISED
from stages.parts.teachers.repeats import Repeats, repeated, rows_to_repeat
from stages.parts.teachers.teacher import open_teacher


class Labels:
    """The labels, written to data/teacher in the inputs' order; `files` closes them, and drops them after an error."""

    def __init__(self, inputs: TeacherInputs, files: ExitStack) -> None:
        pool, test, gold = (
            files.enter_context(jsonl_writer(path))
            for path in (paths.TEACHER_LABELS, paths.TEACHER_TEST, paths.TEACHER_GOLD)
        )
        self.writers = chain(repeat(pool, len(inputs.pool)), repeat(test, len(inputs.test)), repeat(gold))
        self.to_pool, self.to_gold = pool, gold
        self.valid = 0  # pool rows with a label
        self.gold: list[TeacherLabel] = []

    def write(self, row: Row, outcome: Outcome) -> None:
        record, write = teacher_label(row, outcome.prediction), next(self.writers)
        write(record)
        self.valid += record["valid"] and write is self.to_pool
        if write is self.to_gold:
            self.gold.append(record)


def main() -> None:
    params = load_params()
    inputs = read_inputs(params)
    with open_teacher(params, inputs) as teacher, ExitStack() as files:
        labels = Labels(inputs, files)
        run = LabellingRun(teacher, inputs.program, inputs.rows, params.runtime)
        try:
            run.label(labels.write)
        finally:  # a run that stops for too many failures shows them as well
            write_jsonl(paths.TEACHER_FAILED, sorted(run.failed, key=lambda row: row["id"]))
        files.close()  # so that the labels are there to be drawn from
        rows = rows_to_repeat(iter_jsonl(paths.TEACHER_LABELS), teacher.repeat, params.seed)
        again = repeated(teacher, inputs.program, rows, params.runtime, run.budget)
    write_json(paths.TEACHER_REPORT, report(params.profile, inputs, labels, run, again))


def report(
    profile: str, inputs: TeacherInputs, labels: Labels, run: LabellingRun, again: Repeats | None
) -> dict[str, Any]:
    spending = run.budget.spent
    reasons = Counter(row["reason"] for row in run.failed)
    found = {
        "profile": profile,
        "labels": inputs.labels,
        "rows": len(inputs.pool),
        "valid": labels.valid,
        "failed": dict(reasons.most_common()),
        "prompt": inputs.recipe,
        "given": run.given,
        "repeated": asdict(again) if again else None,
        "answers": spending.answers,
        "prompt_tokens": spending.prompt_tokens,
        "completion_tokens": spending.completion_tokens,
        "confused": None,
        "cost": None if spending.dollars is None else round(spending.dollars, 6),
        **({"estimated_answers": spending.estimated} if spending.estimated else {}),  # without usage: cost is a guess
    }
    if inputs.recipe in OPTIMISED:
        return found  # the prompt has learned from the gold rows, which therefore don't test it
    actual, predicted = [row["label"] for row in inputs.gold], [row["label"] for row in labels.gold]
    return found | on_gold(inputs.gold, labels.gold) | {"confused": confusions(actual, predicted, inputs.labels)}


def on_gold(gold: list[Row], labels: list[TeacherLabel]) -> dict[str, float | None]:
    """Return the teacher's accuracy on gold rows whose labels it has not seen, and the Brier score of its confidence.

    The Brier score is in [0, 1], lower is better; None if the teacher reports no confidence.
    """
    hits = [row["label"] == label["label"] for row, label in zip(gold, labels, strict=True)]
    errors = [
        (label["confidence"] - hit) ** 2
        for hit, label in zip(hits, labels, strict=True)
        if label["confidence"] is not None
    ]
    return {"gold_accuracy": sum(hits) / len(hits), "gold_brier": sum(errors) / len(errors) if errors else None}


if __name__ == "__main__":
    run_stage(main)
