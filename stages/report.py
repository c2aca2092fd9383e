"""One page that tells the run's story, its pictures, and cards of model and data, from what the other stages wrote.

python -m stages.report
"""

from collections import Counter
from typing import Any

import pandas as pd

from stages.parts.numbers import plots
from stages.parts.numbers.arms import NAMES, ArmRow, advice, arm_rows, best_linear, percent, served_arm
from stages.parts.numbers.by_label import LabelFigures, by_label
from stages.parts.numbers.cards import data_metadata, model_metadata
from stages.parts.numbers.confusion import confusion_shares
from stages.parts.numbers.render import rendered
from stages.parts.run import paths
from stages.parts.run.files import folder_sha256, read_json, read_jsonl, whole_file, write_text
from stages.parts.run.params import load_params
from stages.parts.run.provenance import commit, today, versions
from stages.parts.run.stage import run_stage
from stages.parts.task.program_file import load_sidecar

STAGES = ("raw", "filter", "split", "teacher", "sft", "base", "lora", "optimize", "calibrate", "evaluate")


def draw(
    metrics: dict[str, Any],
    dev: dict[str, Any],
    times: dict[str, Any],
    arms: list[ArmRow],
    labels: list[str],
    predictions: pd.DataFrame,
    color: str,
) -> dict[str, str]:
    """The page's pictures into reports/, and as SVG by name."""
    folder, served = paths.REPORTS, metrics["served"]
    colors = [color if row["arm"].startswith("tuned") else plots.GREY for row in arms]
    on_dev = {
        NAMES[f"{weights}_{kind}"]: dev["dev"][weights][kind]
        for weights in ("base", "tuned")
        for kind in ("plain", "optimized")
    }
    dev_colors = [color if name.startswith("tuned") else plots.GREY for name in on_dev]
    compared = {
        "linear_gold",
        best_linear(arms, metrics["labels"])["arm"],
        "teacher",
        f"base_{served['program']}",
        served_arm(metrics),
    }
    priced = [
        ("student" if row["arm"] == served_arm(metrics) else row["name"], row["cost"], row["accuracy"], row_color)
        for row, row_color in zip(arms, colors, strict=True)
        if row["arm"] in compared and row["cost"]
    ]
    answered = served["precision"] and (
        served["answered"],
        served["precision"]["accuracy"],
        f"served: from {served['threshold']:.2f} on",
    )
    return {
        "accuracy_test": plots.accuracy_bars(
            folder / "accuracy_test.png",
            f"Accuracy on {metrics['test']['n']} test rows",
            {row["name"]: row["accuracy"] for row in arms},
            colors,
            [{"low": row["low"], "high": row["high"]} for row in arms],
        ),
        "accuracy_dev": plots.accuracy_bars(
            folder / "accuracy_dev.png", f"Agreement with the teacher on {dev['dev']['n']} dev rows", on_dev, dev_colors
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
            "Accuracy of the surest rows",
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
            Counter(predictions.teacher),
            {label: int((predictions.actual == label).sum()) for label in labels},
            color,
        ),
        "cost": plots.cost_against_accuracy(folder / "cost.png", priced),
        "times": plots.stage_times(
            folder / "times.png", {name: time["seconds"] for name, time in times.items()}, color
        ),
    }


def write_tables(arms: list[ArmRow], figures: list[LabelFigures]) -> None:
    """The page's two tables as CSV, for `dvc plots` and `dvc plots diff`."""
    with whole_file(paths.ARMS) as draft:
        pd.DataFrame(arms).drop(columns="less").to_csv(draft, index=False)
    with whole_file(paths.BY_LABEL) as draft:
        pd.DataFrame(figures).drop(columns="confusions").to_csv(draft, index=False)


def main() -> None:
    params = load_params()
    metrics, dev, pair = read_json(paths.METRICS), read_json(paths.DEV_REPORT), load_sidecar(paths.SIDECAR)
    labels, teacher, split = read_json(paths.LABELS), read_json(paths.TEACHER_REPORT), read_json(paths.SPLIT_REPORT)
    files = {name: paths.TIMES / f"{name}.json" for name in STAGES}
    # none for what came from DVC's cache
    times = {name: read_json(file) for name, file in files.items() if file.is_file()}
    arms = arm_rows(metrics, teacher, params.report.price_per_hour)
    [student] = [row for row in arms if row["arm"] == served_arm(metrics)]

    texts = {row["id"]: row["text"] for row in read_jsonl(paths.TEST)}
    # labels may be called 1, true or n/a
    predictions = pd.read_csv(paths.PREDICTIONS, dtype=str, keep_default_na=False)
    said = predictions[served_arm(metrics)]
    figures = by_label(list(predictions.actual), list(said), [texts[row] for row in predictions.id], labels)
    write_tables(arms, figures)
    shares = confusion_shares(list(predictions.actual), list(said), labels)
    plots.confusion(paths.REPORTS / "confusion.png", shares, params.report.color)
    facts = {
        "advice": advice(arms, student, metrics["labels"]),
        "arms": arms,
        "by_label": figures,
        "color": params.report.color,
        "confusion": shares,
        "data_metadata": data_metadata(params, split["gold"] + split["pool"] + split["test"], labels),
        "dev": dev,
        "leaks": read_json(paths.LEAKS),
        "metrics": metrics,
        "model_metadata": model_metadata(params, metrics, student),
        "pair": pair,
        "params": params,
        "pictures": draw(metrics, dev, times, arms, labels, predictions, params.report.color),
        "provenance": {
            "commit": commit(),
            "versions": versions(),
            "day": today(),
            "data": folder_sha256(paths.FILTERED),
        },
        "served_name": f"{metrics['served']['checkpoint']}-{pair.checkpoint_sha256[:12]}",
        "sft": read_json(paths.SFT_REPORT),
        "filter": read_json(paths.FILTER_REPORT),
        "split": split,
        "student": student,
        "teacher": teacher,
        "times": times,
    }
    write_text(paths.REPORTS / "index.html", rendered("index.html", facts))
    write_text(paths.MODEL_CARD, rendered("model_card.md", facts))
    write_text(paths.REPORTS / "data_card.md", rendered("data_card.md", facts))

    print("\nwhere the time went" + " " * 9 + "seconds   peak MB")
    for name, time in times.items():
        print(f"  {name:24}{time['seconds']:9.1f}{time['peak_memory_mb']:10}")
    print(f"  {'all':24}{sum(time['seconds'] for time in times.values()):9.1f}")
    print("\ntest accuracy")
    for row in arms:
        print(f"  {row['name']:36}{percent(row['accuracy']):>8}")
    print(f"\n{' '.join(facts['advice'])}\n\nthe whole report: reports/index.html")


if __name__ == "__main__":
    run_stage(main)
