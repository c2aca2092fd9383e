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
PROMISE = paths.REPORTS / "bench/promise.json"
PROMISE_ROWS = 100
BENCH_CORPORA = {"sample": "the sample corpus", "banking77": "Banking77"}
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


def results(folder: Path, promise_file: Path) -> str:
    """Return the block's text from the files in a folder like reports/seeds and from reports/bench/promise.json."""
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
    rows = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]
    return "\n".join([*lines, *rows, *promise(promise_file)])


def promise(file: Path) -> list[str]:
    """Return what the service answers, and how often the promise of right answers breaks, from `make bench-promise`."""
    if not file.is_file():
        return []
    found = read_json(file)
    runs = [run for run in found["runs"] if not run["swapped"] and run["gold_rows"] == PROMISE_ROWS]
    clauses = []
    for run in runs:
        rule = run["rules"]["new"]
        clauses.append(
            f"on {BENCH_CORPORA[run['corpus']]} the encoder student answers {100 * rule['coverage']:.0f} % of the test "
            f"queries, {100 * rule['precision']:.1f} % of its answers are right, and {rule['broken']} of "
            f"{rule['draws']} draws fall short"
        )
    wanted = f"The service certifies {100 * found['wanted']:.0f} % right answers with {PROMISE_ROWS} gold rows"
    return ["", f"{wanted}: {'; '.join(clauses)} (`make bench-promise`)."]


def write_results(readme: Path = README, folder: Path = paths.SEEDS, promise_file: Path = PROMISE) -> None:
    """Replace the text between the markers; raises UserError if the README lacks one of them."""
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"{readme} lacks the line {END if start else START}: put it where the results go")
    write_text(readme, f"{before}{START}\n{results(folder, promise_file)}\n{END}{after}")


def main() -> None:
    with command("readme"):
        write_results()


if __name__ == "__main__":
    main()
