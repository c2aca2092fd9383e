"""Write one page on the run, its pictures, and cards of model and data, from the files of the other stages.

python -m stages.report
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from stages.parts.engines.budget import DISCOUNT
from stages.parts.numbers import plots
from stages.parts.numbers.advice import CONTENDERS, advice
from stages.parts.numbers.arms import NAMES, ArmRow, arm_rows, best_linear
from stages.parts.numbers.break_even import (
    MILLION,
    TRAINING,
    BreakEven,
    Spent,
    break_even,
    machine_dollars,
    student_price,
)
from stages.parts.numbers.by_label import LabelFigures, by_label, confusion_shares
from stages.parts.numbers.cards import data_metadata, model_metadata, plain_vllm_options, pretrained
from stages.parts.numbers.metrics import ContenderFigures, Metrics, load_metrics
from stages.parts.numbers.render import percent, rendered
from stages.parts.run import paths
from stages.parts.run.files import folder_sha256, read_json, read_jsonl, whole_file, write_text
from stages.parts.run.params import HostedTeacherSettings, Params, ServedTeacherSettings, load_params
from stages.parts.run.provenance import commit, today, versions
from stages.parts.run.stage import run_stage
from stages.parts.task.program_file import Sidecar, load_sidecar

STAGES = tuple("raw filter split embed teacher sft base lora linear encoder optimize calibrate evaluate".split())


@dataclass(frozen=True)
class FinishedRun:
    """What the stages left behind. `predictions` has a column of labels for each arm; `times` lacks a stage whose
    outputs came from DVC's cache.
    """

    params: Params
    pair: Sidecar
    labels: list[str]
    metrics: Metrics
    dev: dict[str, Any]
    teacher: dict[str, Any]
    predictions: pd.DataFrame
    times: dict[str, dict[str, float]]

    @cached_property
    def arms(self) -> list[ArmRow]:
        prices = self.params.report
        of_student = prices.gpu_price_per_hour if self.params.student_on_gpus else prices.cpu_price_per_hour
        return arm_rows(self.metrics, prices.cpu_price_per_hour, of_student, self.prices["teacher"])

    @cached_property
    def prices(self) -> dict[str, float | None]:
        """The dollars of a million queries by contender, None if that is not known."""
        students = {name: student_price(self.params, name, found) for name, found in self.metrics.contenders.items()}
        of_teacher = teacher_query_dollars(self.params, self.teacher, self.seconds.get("teacher"))
        return students | {"teacher": None if of_teacher is None else MILLION * of_teacher}

    @cached_property
    def break_even(self) -> BreakEven:
        """When the contender to serve has paid for itself."""
        of_teacher, of_student = self.prices["teacher"], self.prices[self.metrics.serve]
        return break_even(
            teacher=None if of_teacher is None else of_teacher / MILLION,
            student=(of_student or 0.0) / MILLION,
            answered=self.chosen.answered or 0.0,
            spent=spent(self.params, self.teacher.get("cost"), self.seconds),
            prices_date=self.params.report.prices_date,
        )

    @property
    def seconds(self) -> dict[str, float]:
        return {stage: time["seconds"] for stage, time in self.times.items()}

    @cached_property
    def student(self) -> ArmRow:
        """The decoder pair."""
        return next(row for row in self.arms if row["arm"] == self.metrics.served_arm)

    @property
    def chosen(self) -> ContenderFigures:
        """The contender to serve."""
        return self.metrics.contenders[self.metrics.serve]

    @property
    def chosen_labels(self) -> list[str]:
        """The labels that it gives the test rows."""
        return list(self.predictions[self.metrics.arm_of(self.metrics.serve)])

    @cached_property
    def confusion(self) -> pd.DataFrame:
        return confusion_shares(list(self.predictions.actual), self.chosen_labels, self.labels)

    @cached_property
    def by_label(self) -> list[LabelFigures]:
        texts = {row["id"]: row["text"] for row in read_jsonl(paths.TEST)}
        return by_label(
            list(self.predictions.actual),
            self.chosen_labels,
            [texts[row] for row in self.predictions.id],
            self.labels,
        )


def teacher_query_dollars(params: Params, report: Mapping[str, Any], seconds: float | None) -> float | None:
    """Return the dollars of one query; None if the price is not known.

    `report` is the teacher's (reports/teacher.json), `seconds` is how long stage `teacher` took, None if that is not
    known. A hosted teacher costs its bill divided by its answers, at full price even if the run paid the batch price.
    A teacher on your own GPUs costs its machine's time, and looks too cheap after a run that resumed. A linear one
    costs nothing.
    """
    settings = params.teacher
    if isinstance(settings, HostedTeacherSettings):
        bill = report["cost"] if report.get("cost") is None or not settings.batch else report["cost"] / DISCOUNT
    elif isinstance(settings, ServedTeacherSettings):
        bill = None if seconds is None else seconds * params.report.gpu_price_per_hour / 3600
    else:
        return 0.0
    return None if bill is None else bill * settings.votes / report["answers"]


def spent(params: Params, bill: float | None, seconds: Mapping[str, float]) -> Spent:
    """Return what the run cost: the teacher's bill, and the stages' time on its machine."""
    per_hour = params.report.gpu_price_per_hour if params.needs_gpus else params.report.cpu_price_per_hour
    machine = machine_dollars(seconds, ("teacher",), per_hour)
    known = [dollars for dollars in (bill, machine) if dollars is not None]
    return Spent(sum(known) if known else None, machine_dollars(seconds, TRAINING, per_hour))


def read_run() -> FinishedRun:
    times = {name: paths.TIMES / f"{name}.json" for name in STAGES}
    return FinishedRun(
        params=load_params(),
        pair=load_sidecar(paths.SIDECAR),
        labels=read_json(paths.LABELS),
        metrics=load_metrics(paths.METRICS),
        dev=read_json(paths.DEV_REPORT),
        teacher=read_json(paths.TEACHER_REPORT),
        # As strings: labels may be called 1, true or n/a.
        predictions=pd.read_csv(paths.PREDICTIONS, dtype=str, keep_default_na=False),
        times={name: read_json(file) for name, file in times.items() if file.is_file()},
    )


def draw(run: FinishedRun) -> dict[str, str]:
    """Write the page's pictures into reports/; returns them as SVG by name."""
    folder, color, served, chosen = paths.REPORTS, run.params.report.color, run.metrics.served, run.chosen
    colors = [color if row["arm"].startswith("tuned") else plots.GREY for row in run.arms]
    on_dev = {
        NAMES[f"{weights}_{kind}"]: run.dev["dev"][weights][kind]
        for weights in ("base", "tuned")
        for kind in ("plain", "optimized")
    }
    dev_colors = [color if name.startswith("tuned") else plots.GREY for name in on_dev]
    # The picture of costs shows what one might serve instead: more names would overlap.
    linear = best_linear(run.arms, run.metrics.labels)["arm"]
    rivals = {"linear_gold", linear, "encoder", "teacher", f"base_{served.program}"}
    priced = [
        ("decoder" if row is run.student else row["name"], row["cost"], row["accuracy"], row_color)
        for row, row_color in zip(run.arms, colors, strict=True)
        if (row["arm"] in rivals or row is run.student) and row["cost"]
    ]
    answered = None
    if chosen.answered and chosen.precision and chosen.threshold is not None:
        answered = (chosen.answered, chosen.precision.accuracy, f"answered: confidence ≥ {chosen.threshold:.2f}")
    plots.confusion(folder / "confusion.png", run.confusion, color)
    return {
        "accuracy_test": plots.accuracy_bars(
            folder / "accuracy_test.png",
            f"Accuracy on {run.metrics.test.n} test rows",
            {row["name"]: row["accuracy"] for row in run.arms},
            colors,
            [{"low": row["low"], "high": row["high"]} for row in run.arms],
        ),
        "accuracy_dev": plots.accuracy_bars(
            folder / "accuracy_dev.png",
            f"Agreement with the teacher on {run.dev['dev']['n']} dev rows",
            on_dev,
            dev_colors,
        ),
        "calibration": plots.curve(
            folder / "calibration.png",
            "Calibration on test",
            "confidence",
            "accuracy",
            read_json(paths.RELIABILITY),
            color,
            diagonal=True,
        ),
        "coverage": plots.curve(
            folder / "coverage.png",
            "Accuracy against coverage",
            "coverage",
            "accuracy",
            read_json(paths.COVERAGE),
            color,
            mark=answered,
        ),
        "learning_curve": plots.curve(
            folder / "learning_curve.png", "Training loss", "step", "loss", read_json(paths.LEARNING_CURVE), color
        ),
        "label_counts": plots.label_counts(
            folder / "label_counts.png",
            Counter(run.predictions.teacher),
            {label: int((run.predictions.actual == label).sum()) for label in run.labels},
            color,
        ),
        "cost": plots.cost_against_accuracy(folder / "cost.png", priced),
        "times": plots.stage_times(folder / "times.png", run.seconds, color),
    }


def write_tables(run: FinishedRun) -> None:
    """Write the page's two tables as CSV, for `dvc plots` and `dvc plots diff`."""
    with whole_file(paths.ARMS) as draft:
        pd.DataFrame(run.arms).drop(columns="less").to_csv(draft, index=False)
    with whole_file(paths.BY_LABEL) as draft:
        pd.DataFrame(run.by_label).drop(columns="confusions").to_csv(draft, index=False)


def write_pages(run: FinishedRun) -> None:
    """Write the report's page and both cards."""
    split = read_json(paths.SPLIT_REPORT)
    context = {
        "advice": advice(run.metrics, run.break_even),
        "arms": run.arms,
        "by_label": run.by_label,
        "color": run.params.report.color,
        "confusion": run.confusion,
        "contenders": CONTENDERS,
        "data_metadata": data_metadata(run.params, split["gold"] + split["pool"] + split["test"], run.labels),
        "dev": run.dev,
        "filter": read_json(paths.FILTER_REPORT),
        "leaks": read_json(paths.LEAKS),
        "metrics": run.metrics,
        "model_metadata": model_metadata(run.params, run.metrics, run.student),
        "pair": run.pair,
        "params": run.params,
        "pictures": draw(run),
        "provenance": {
            "commit": commit(),
            "versions": versions(),
            "day": today(),
            "data": folder_sha256(paths.FILTERED),
            "pretrained": pretrained(run.params),
        },
        "serve_options": " ".join(plain_vllm_options(run.params)),
        "prices": run.prices,
        "predictor": "Predict" if run.pair.style == "direct" else "ChainOfThought",
        "served_name": f"{run.metrics.served.checkpoint}-{run.pair.checkpoint_sha256[:12]}",
        "sft": read_json(paths.SFT_REPORT),
        "split": split,
        "student": run.student,
        "teacher": run.teacher,
        "times": run.times,
    }
    for template, path in (
        ("index.html", paths.REPORTS / "index.html"),
        ("model_card.md", paths.MODEL_CARD),
        ("data_card.md", paths.REPORTS / "data_card.md"),
    ):
        write_text(path, rendered(template, **context))


def print_summary(run: FinishedRun) -> None:
    print("\nwhere the time went" + " " * 9 + "seconds   peak MB")
    for name, time in run.times.items():
        print(f"  {name:24}{time['seconds']:9.1f}{time['peak_memory_mb']:10}")
    print(f"  {'all':24}{sum(time['seconds'] for time in run.times.values()):9.1f}")
    print("\ntest accuracy")
    for row in run.arms:
        print(f"  {row['name']:36}{percent(row['accuracy']):>8}")
    print(f"\n{advice(run.metrics, run.break_even)}\n\nthe whole report: reports/index.html")


def main() -> None:
    run = read_run()
    write_tables(run)
    write_pages(run)
    print_summary(run)


if __name__ == "__main__":
    run_stage(main)
