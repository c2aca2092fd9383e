"""Write the results in README.md from the files in reports/, between two markers, so that no number is typed by hand.

python -m stages.parts.numbers.readme
"""

from pathlib import Path
from typing import Any

from stages.parts.numbers.render import points
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_text

README = Path("README.md")
START, END = "<!-- results: written by make readme -->", "<!-- end of results -->"
# Column of the table -> file in reports/seeds. Banking77 was read from CSV files, as source `csv`.
CORPORA = {"sample corpus": "embedded-sample.json", "Banking77, 25 labels": "embedded-csv.json"}
ROWS = {
    "base_plain": "base, before training",
    "served": "**tuned student**",
    "teacher": "teacher, from 100 rows",
    "linear_teacher": "linear, teacher's labels",
    "linear_gold": "linear, 100 rows",
    "linear_true": "linear, true labels",
}
FIXED = ("base_plain", "linear_true")  # their spread is that of the weights or the split, not of a teacher's gold rows


def share(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.1f} % ± {100 * found['deviation']:.1f}"


def cell(row: str, run: dict[str, Any]) -> str:
    """Return mean and standard deviation of an arm's accuracy."""
    found = run["served"] if row == "served" else run["accuracy"][row]
    mean, _, deviation = share(found).partition(" ± ")
    if row in FIXED:
        return mean
    return f"**{mean}** ± {deviation}" if row == "served" else share(found)


def difference(found: dict[str, Any]) -> str:
    return f"{points(found['mean'])} ({points(found['low'])} to {points(found['high'])})"


def results(folder: Path) -> str:
    """Return the block's text from the files in a folder like reports/seeds."""
    by_corpus = {corpus: read_json(folder / name) for corpus, name in CORPORA.items()}
    runs = list(by_corpus.values())
    last = max(max(run["seeds"]) for run in runs)
    lines = [
        f"Test accuracy with the embedded profile, mean over seeds 0 to {last} and standard deviation of a run.",
        "Each seed draws different gold rows, so it trains a different teacher and student.",
        "",
        "| | " + " | ".join(by_corpus) + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    table = {name: [cell(row, run) for run in runs] for row, name in ROWS.items()}
    table["student minus better linear model (95 %)"] = [difference(run["served_less_linear"]) for run in runs]
    table["answered by the service"] = [share(run["answered"]) for run in runs]
    table["right among these"] = [share(run["right_answers"]) if run["right_answers"] else "none" for run in runs]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items())])


def write_results(readme: Path = README, folder: Path = paths.SEEDS) -> None:
    """Replace the text between the markers; raises UserError if the README lacks one of them."""
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"{readme} lacks the line {END if start else START}: put it where the results go")
    write_text(readme, f"{before}{START}\n{results(folder)}\n{END}{after}")


def main() -> None:
    with command("readme"):
        write_results()


if __name__ == "__main__":
    main()
