"""The report's pictures, drawn with matplotlib without a screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from stages.parts.run.files import whole_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GREY = "#9aa0a6"
DPI = 130


def save(figure: Any, path: Path) -> None:
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=DPI, bbox_inches="tight", format="png", metadata={"Software": None})
    plt.close(figure)


def accuracy_bars(
    path: Path, title: str, bars: Mapping[str, float], colors: Sequence[str], intervals: Sequence[Mapping[str, float]] = ()
) -> None:
    """One horizontal bar for each name with its percentage; `intervals` (low, high, in the bars' order) as whiskers."""
    figure, axes = plt.subplots(figsize=(7.5, 0.48 * len(bars) + 1))
    values = np.array([100 * value for value in bars.values()])
    ends = np.array([[i["low"], i["high"]] for i in intervals]).T * 100
    axes.barh(list(bars), values, color=list(colors), xerr=np.abs(ends - values) if intervals else None, ecolor="#3c4043", capsize=2)
    reach = ends[1] if intervals else values
    for number, value in enumerate(values):
        x, color = (1, "white") if value > 15 else (reach[number] + 1, "black")  # behind bar and whisker, where the bar is short
        axes.text(x, number, f"{value:.1f} %", va="center", color=color, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy in percent", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def confusion(path: Path, actual: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    """Rows are true labels, columns predicted ones; shares of the row."""
    names = [*labels, "unknown"] if set(predicted) - set(labels) else list(labels)
    counts = confusion_matrix(actual, [label if label in labels else "unknown" for label in predicted], labels=names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(11, 10))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for row, column in zip(*np.nonzero(shares >= 0.05), strict=True):
        axes.text(
            column,
            row,
            f"{100 * shares[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if shares[row, column] > 0.5 else "black",
        )
    axes.set(xlabel="predicted", ylabel="true", title="Served student on test, percent of each true label")
    save(figure, path)


def curve(path: Path, title: str, x: str, y: str, points: Sequence[Mapping[str, float]], color: str, diagonal: bool = False) -> None:
    """A line through points; `diagonal` adds the line of perfect calibration."""
    table = pd.DataFrame(points)
    figure, axes = plt.subplots(figsize=(6, 3.6))
    if diagonal:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.plot(table[x], table[y], color=color, marker="o", markersize=3)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def stage_times(path: Path, seconds: Mapping[str, float], color: str) -> None:
    """Where the time went: one bar for each stage."""
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    axes.barh(list(seconds), list(seconds.values()), color=color)
    for number, value in enumerate(seconds.values()):
        axes.text(value, number, f" {value:.0f} s", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title=f"Where the time goes: {sum(seconds.values()) / 60:.1f} minutes in all")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
