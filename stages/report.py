"""Pictures, one page and a model card from the reports of the other stages.

python -m stages.report
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.parts.numbers import plots
from stages.parts.run import paths
from stages.parts.run.files import read_json, write_text
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.program_file import load_sidecar

STAGES = ("raw", "filter", "split", "teacher", "sft", "base", "lora", "optimize", "calibrate", "evaluate")
TEMPLATES = Path("stages/parts/numbers/templates")
TEST_ARMS = {
    "base_plain": "base, plain",
    "base_optimized": "base, optimised",
    "tuned_plain": "tuned, plain",
    "tuned_optimized": "tuned, optimised",
    "teacher": "teacher",
    "linear_gold": "linear, gold labels",
    "linear_teacher": "linear, teacher's labels",
    "linear_true": "linear, all true labels",
}


def draw(metrics: dict[str, Any], dev: dict[str, Any], times: dict[str, Any], color: str) -> None:
    """All pictures into reports/."""
    folder = paths.REPORTS
    arms = metrics["interval"]
    shown = [arm for arm in TEST_ARMS if arm in arms]
    colors = [color if arm.startswith("tuned") else plots.GREY for arm in shown]
    bars = {TEST_ARMS[arm]: arms[arm]["accuracy"] for arm in shown}
    plots.accuracy_bars(
        folder / "accuracy_test.png", f"Test accuracy, {metrics['test']['n']} rows", bars, colors, [arms[arm] for arm in shown]
    )
    on_dev = {f"{weights}, {kind}": dev["dev"][weights][kind] for weights in ("base", "tuned") for kind in ("plain", "optimized")}
    dev_colors = [color if name.startswith("tuned") else plots.GREY for name in on_dev]
    plots.accuracy_bars(folder / "accuracy_dev.png", f"Agreement with the teacher on {dev['dev']['n']} dev rows", on_dev, dev_colors)
    confusion = pd.read_csv(paths.CONFUSION)
    plots.confusion(folder / "confusion.png", list(confusion.actual), list(confusion.predicted), read_json(paths.LABELS))
    plots.curve(folder / "learning_curve.png", "Training loss", "step", "loss", read_json(paths.LEARNING_CURVE), color)
    plots.curve(
        folder / "calibration.png", "Calibration on test", "confidence", "accuracy", read_json(paths.RELIABILITY), color, diagonal=True
    )
    plots.curve(folder / "coverage.png", "Accuracy of the surest rows", "coverage", "accuracy", read_json(paths.COVERAGE), color)
    plots.stage_times(folder / "times.png", {name: time["seconds"] for name, time in times.items()}, color)


def main() -> None:
    params = load_params()
    metrics, dev, pair = read_json(paths.METRICS), read_json(paths.DEV_REPORT), load_sidecar(paths.SIDECAR)
    files = {name: paths.TIMES / f"{name}.json" for name in STAGES}
    times = {name: read_json(file) for name, file in files.items() if file.is_file()}  # none for what came from DVC's cache
    draw(metrics, dev, times, params.report.color)

    predictions = pd.read_csv(paths.PREDICTIONS)
    served = predictions[f"tuned_{pair.program}"]
    confused = Counter((actual, said) for actual, said in zip(predictions.actual, served, strict=True) if actual != said)
    facts = {
        "metrics": metrics,
        "dev": dev,
        "teacher": read_json(paths.TEACHER_REPORT),
        "sft": read_json(paths.SFT_REPORT),
        "filter": read_json(paths.FILTER_REPORT),
        "split": read_json(paths.SPLIT_REPORT),
        "pair": pair,
        "times": times,
        "arms": [(name, metrics["interval"][arm]) for arm, name in TEST_ARMS.items() if arm in metrics["interval"]],
        "confused": [(actual, said, count) for (actual, said), count in confused.most_common(10)],
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    write_text(paths.REPORTS / "index.html", environment.get_template("index.html").render(facts))
    environment.autoescape = False
    write_text(paths.REPORTS / "model_card.md", environment.get_template("model_card.md").render(facts))

    print("\nwhere the time went" + " " * 9 + "seconds   peak MB")
    for name, time in times.items():
        print(f"  {name:24}{time['seconds']:9.1f}{time['peak_memory_mb']:10}")
    print(f"  {'all':24}{sum(time['seconds'] for time in times.values()):9.1f}")
    print("\ntest accuracy")
    for name, arm in facts["arms"]:
        print(f"  {name:28}{arm['accuracy']:7.1%}")
    print("\nthe whole report: reports/index.html")


if __name__ == "__main__":
    run_stage(main)
