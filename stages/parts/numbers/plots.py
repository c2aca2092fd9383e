"""The report's pictures, drawn with matplotlib without a screen.

Each is written as PNG, for `dvc plots` and README files, and returned as SVG for the page. The SVG has no background,
and its text takes the page's colour instead of INK, so that it fits a light and a dark page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from stages.parts.run.files import whole_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

INK = "#202124"
GREY = "#9aa0a6"
DPI = 130
# inches: readable when a phone shrinks it to 350 pixels, and two fit side by side on a page
WIDTH = 5.0
matplotlib.rcParams.update(
    {
        "font.size": 10,
        "figure.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "one picture, one file",
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
)


def save(figure: Any, path: Path) -> str:
    """Write the figure as PNG; returns it as SVG. The file's name makes its ids unique on a page."""
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=DPI, format="png", metadata={"Software": None})
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = re.sub(r"(?s)<metadata>.*?</metadata>", "", drawn.getvalue()[drawn.getvalue().index("<svg") :])
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{path.stem}-", svg).replace(INK, "currentColor")


def accuracy_bars(
    path: Path,
    title: str,
    bars: Mapping[str, float],
    colors: Sequence[str],
    intervals: Sequence[Mapping[str, float]] = (),
) -> str:
    """Draw a horizontal bar with its percentage for each name; `intervals` (low, high) are whiskers, in their order."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.36 * len(bars) + 0.9))
    values = np.array([100 * value for value in bars.values()])
    ends = np.array([[i["low"], i["high"]] for i in intervals]).T * 100
    axes.barh(
        list(bars), values, color=list(colors), xerr=np.abs(ends - values) if intervals else None, ecolor=INK, capsize=2
    )
    reach = ends[1] if intervals else values
    for number, value in enumerate(values):
        inside = "black" if colors[number] == GREY else "white"
        # A short bar has no room: its number stands right of the whisker.
        x, color = (1, inside) if value > 20 else (reach[number] + 1, INK)
        axes.text(x, number, f"{value:.1f} %", va="center", color=color, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="percent")
    figure.suptitle(title)
    return save(figure, path)


def confusion(path: Path, shares: pd.DataFrame, color: str) -> None:
    """Draw shares of true labels (rows) by predicted label (columns). The picture grows with the labels, so that 77
    stay readable in the file; the page has a table."""
    names = list(shares.index)
    side = 2.6 + max(4.0, 0.27 * len(names))  # room for the names
    figure, axes = plt.subplots(figsize=(side, side))
    table = shares.to_numpy(dtype=float)
    for row, column in zip(*np.nonzero(table), strict=True):
        share = table[row, column]
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=0.08 + 0.92 * share, linewidth=0)
        )
        if share >= 0.03:
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if share > 0.5 else INK,
            )
    ticks = np.arange(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_xticks(ticks - 0.5, minor=True)
    axes.set_yticks(ticks - 0.5, minor=True)
    axes.grid(which="minor", color=GREY, alpha=0.25, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="predicted", ylabel="true")
    figure.suptitle("Served student on test: percent of each true label")
    axes.set_aspect("equal")
    save(figure, path)


def curve(
    path: Path,
    title: str,
    x: str,
    y: str,
    points: Sequence[Mapping[str, float]],
    color: str,
    diagonal: bool = False,
    mark: tuple[float, float, str] | None = None,
) -> str:
    """Draw a line through points; `diagonal` adds the line of perfect calibration, `mark` (x, y, legend) a ring."""
    table = pd.DataFrame(points)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.3))
    if diagonal:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.plot(table[x], table[y], color=color, marker="o", markersize=3)
    if mark:
        axes.plot(
            *mark[:2],
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=INK,
            linestyle="none",
            label=mark[2],
        )
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel=x, ylabel=y)
    figure.suptitle(title)
    axes.grid(alpha=0.3)
    return save(figure, path)


def cost_against_accuracy(path: Path, arms: Sequence[tuple[str, float, float, str]]) -> str:
    """Draw arms (name, dollars per million queries, accuracy, color): higher is better, left is cheaper."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.3))
    dearest = max(cost for _, cost, _, _ in arms)
    cheapest = min(cost for _, cost, _, _ in arms)
    for name, cost, accuracy, color in arms:
        axes.plot(cost, 100 * accuracy, marker="o", markersize=8, color=color)
        # Names right of the middle go below their point, the others above: at one height they would overlap.
        below: dict[str, Any] = {"xytext": (0, -8), "ha": "right", "va": "top"}
        above: dict[str, Any] = {"xytext": (0, 8), "ha": "left", "va": "bottom"}
        place = below if cost > (cheapest * dearest) ** 0.5 else above
        axes.annotate(name, (cost, 100 * accuracy), textcoords="offset points", fontsize=9, **place)
    axes.set_xscale("log")
    axes.set(xlim=(cheapest / 3, dearest * 3), ylim=(-12, 108), yticks=range(0, 101, 20))
    axes.set(xlabel="dollars per million queries", ylabel="test accuracy in percent")
    figure.suptitle("Accuracy against cost")
    axes.grid(alpha=0.3)
    return save(figure, path)


def label_counts(path: Path, predicted: Mapping[str, int], true: Mapping[str, int], color: str) -> str:
    """Draw how many rows have each label and how many the teacher gave it: its bias, which the student learns."""
    names = sorted(true, key=lambda name: true[name])
    figure, axes = plt.subplots(figsize=(WIDTH, 0.19 * len(names) + 1))
    for number, name in enumerate(names):
        axes.plot([true[name], predicted.get(name, 0)], [number, number], color=GREY, linewidth=1.5, zorder=1)
    axes.scatter([true[name] for name in names], range(len(names)), color=GREY, s=18, label="true", zorder=2)
    axes.scatter(
        [predicted.get(name, 0) for name in names], range(len(names)), color=color, s=18, label="teacher", zorder=3
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="test rows", ylim=(-0.8, len(names) - 0.2), xlim=(0, None))
    figure.suptitle("Labels given by the teacher and by people")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return save(figure, path)


def stage_times(path: Path, seconds: Mapping[str, float], color: str) -> str:
    """Draw a bar with the seconds of each stage."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.3))
    axes.barh(list(seconds), list(seconds.values()), color=color)
    for number, value in enumerate(seconds.values()):
        axes.text(value, number, f" {value:.0f} s", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="seconds")
    figure.suptitle(f"Time of each stage: {sum(seconds.values()) / 60:.1f} minutes in total")
    return save(figure, path)
