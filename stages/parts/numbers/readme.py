"""Write the menu and the results in README.md from the files in reports/, so that no number is typed by hand.

python -m stages.parts.numbers.readme
"""

from pathlib import Path
from typing import Any

from stages.parts.numbers.advice import CONTENDERS, serve_command
from stages.parts.numbers.break_even import student_price
from stages.parts.numbers.metrics import Metrics, load_metrics
from stages.parts.numbers.render import dollars, points
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_text
from stages.parts.run.params import Params, load_params

README = Path("README.md")
PROMISE, PEERS = "bench/promise.json", "bench/peers.json"
ONE_RUN = {  # arm -> row of the table, beside the served decoder
    "encoder": "encoder student",
    "teacher": "teacher, from 100 gold rows",
    "linear_cleaned": "linear model, same labels",
    "linear_gold": "linear model, 100 gold rows",
    "linear_true": "linear model, all true labels",
}
PROMISE_ROWS = 100
NOT_MEASURED = "-"
BENCH_CORPORA = {"sample": "the sample corpus", "banking77": "Banking77"}
MENU, END_OF_MENU = "<!-- menu: written by make readme -->", "<!-- end of menu -->"
START, END = "<!-- results: written by make readme -->", "<!-- end of results -->"
# Column of the table -> file in reports/seeds. Banking77 was read from CSV files, as source `csv`.
ALL_LABELS = "Banking77, 77 labels, 308 gold"
CORPORA = {
    "sample corpus, 100 gold": "embedded-sample-top25.json",
    "Banking77, 25 labels, 100 gold": "embedded-csv-top25.json",
    ALL_LABELS: "embedded-csv-top77.json",
}
ROWS = {
    "linear_teacher": "linear, teacher's labels",
    "encoder": "encoder student",
    "served": "decoder student",
    "teacher": "teacher, from gold rows",
    "linear_gold": "linear, gold rows",
    "linear_true": "linear, true labels",
    "base_plain": "decoder, before training",
}
# Test accuracy on Banking77's 77 labels as others publish it, with the setting: who learned from what.
PUBLISHED = (
    "Published for 77 labels: a student of 89.5 % from a teacher of 91 % (distil labs), 75.7 % from 75.8 % "
    "(taskdistill); 79.8 % for logistic regression on MiniLM with a few true labels (MTEB)."
)
PEER_NAMES = {  # in the file -> here
    "encoder student": "encoder student",
    "setfit, gold rows": "SetFit on 100 gold rows",
    "setfit, teacher's labels": "SetFit on the teacher's labels",
    "heartcut setfit": "heartcut with SetFit",
}
FIXED = ("base_plain", "linear_true")  # their spread is that of the weights or the split, not of a teacher's gold rows


def cell(row: str, run: dict[str, Any]) -> str:
    """Return mean and standard deviation of an arm's accuracy; a dash where it was not measured."""
    found = run["served"] if row == "served" else run["accuracy"].get(row)
    if not found:
        return "-"
    mean = f"{100 * found['mean']:.1f} %"
    return mean if row in FIXED else f"{mean} ± {100 * found['deviation']:.1f}"


def difference(found: dict[str, Any]) -> str:
    return f"{points(found['mean'])} ({points(found['low'])} to {points(found['high'])})"


def results(reports: Path) -> str:
    """Return the block's text from the files in a folder like reports/; a measurement that is not there is left out."""
    parts = [
        seeds(reports / paths.SEEDS.name),
        one_run(load_metrics(reports / paths.METRICS.name)),
        peers(reports / PEERS),
        promise(reports / PROMISE),
    ]
    return "\n\n".join(filter(None, parts))


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def menu(metrics: Metrics, params: Params) -> str:
    """Return what each student of the last `dvc repro` is worth as a service, the cheapest first, and its command."""
    header = ["", "right", "answered", "ms", "MB", "a million", "command"]
    rows = [
        [
            f"**{CONTENDERS[name]}**" if name == metrics.serve else CONTENDERS[name],
            f"{100 * found.accuracy.accuracy:.1f} %",
            f"{100 * (found.answered or 0):.0f} %",
            NOT_MEASURED if found.p50_ms is None else f"{found.p50_ms:.1f}",
            NOT_MEASURED if found.memory_mb is None else f"{found.memory_mb:,.0f}",
            NOT_MEASURED if (price := student_price(params, name, found)) is None else dollars(price),
            f"`{serve_command(name)}`",
        ]
        for name, found in metrics.contenders.items()
        if name != "teacher"
    ]
    caption = (
        f"Profile {metrics.profile} on {metrics.source}, {metrics.test.n} test rows; answered above the threshold, ms "
        f"of one query, MB of memory, prices of {params.report.prices_date}. The report advises the **bold** one."
    )
    return f"{table(header, rows)}\n\n{caption}"


def one_run(metrics: Metrics) -> str:
    """Return the test accuracies of the last `dvc repro`, best first, without those that the menu shows."""
    in_menu = {metrics.arm_of(name) for name in metrics.contenders if name != "teacher"}
    wanted = {*ONE_RUN, metrics.served_arm} - in_menu
    shown = {arm: measure for arm, measure in metrics.interval.items() if arm in wanted}
    ranked = sorted(shown.items(), key=lambda pair: -pair[1].accuracy)
    rows = [
        [ONE_RUN.get(arm, "decoder student"), f"{100 * m.accuracy:.1f} %", f"{100 * m.low:.1f} to {100 * m.high:.1f}"]
        for arm, m in ranked
    ]
    n = metrics.test.n
    caption = f"Profile {metrics.profile} on {metrics.source}, seed 0: {n} test rows."
    return f"{caption}\n\n{table(['', 'right', '95 % interval'], rows)}"


def seeds(folder: Path) -> str:
    """Return the table of `make seeds`: the whole pipeline over several seeds, of the corpora that were measured."""
    measured = {corpus: folder / name for corpus, name in CORPORA.items() if (folder / name).is_file()}
    if not measured:
        return ""
    by_corpus = {corpus: read_json(file) for corpus, file in measured.items()}
    runs = list(by_corpus.values())
    rows = [[name, *(cell(row, run) for run in runs)] for row, name in ROWS.items()]
    rows.append(["decoder minus better linear model (95 %)", *(difference(run["served_less_linear"]) for run in runs)])
    rows.append(["seeds", *(str(len(run["seeds"])) for run in runs)])
    caption = "The whole pipeline with several seeds: mean and standard deviation of a run, on test (`make seeds`)."
    found = f"{caption}\n\n{table(['', *by_corpus], rows)}"
    return f"{found}\n\n{PUBLISHED}" if ALL_LABELS in by_corpus else found


def peers(file: Path) -> str:
    """Return what other libraries make of the same rows, from `make bench-peers`."""
    if not file.is_file():
        return ""
    found = read_json(file)
    right = [f"{name} {100 * found['peers'][key]['accuracy']:.1f} %" for key, name in PEER_NAMES.items()]
    return f"The same {found['test_rows']} test rows with other libraries: {', '.join(right)} (`make bench-peers`)."


def promise(file: Path) -> str:
    """Return what the service answers, and how often the promise of right answers breaks, from `make bench-promise`."""
    if not file.is_file():
        return ""
    found = read_json(file)
    runs = [run for run in found["runs"] if not run["swapped"] and run["gold_rows"] == PROMISE_ROWS]
    clauses = []
    for run in runs:
        rule = run["rules"]["new"]
        clauses.append(
            f"on {BENCH_CORPORA[run['corpus']]} the encoder answers {100 * rule['coverage']:.0f} % of the queries, "
            f"{100 * rule['precision']:.1f} % rightly, and {rule['broken']} of {rule['draws']} draws fall short"
        )
    wanted = f"Certifying {100 * found['wanted']:.0f} % with {PROMISE_ROWS} gold rows"
    return f"{wanted}: {'; '.join(clauses)} (`make bench-promise`)."


def write_results(readme: Path = README, reports: Path = paths.REPORTS) -> None:
    """Replace the texts between the markers; raises UserError if the README lacks one of them."""
    text = readme.read_text(encoding="utf-8")
    of_menu = menu(load_metrics(reports / paths.METRICS.name), load_params())
    blocks = {(MENU, END_OF_MENU): of_menu, (START, END): results(reports)}
    for (opening, closing), block in blocks.items():
        before, start, rest = text.partition(opening)
        _, end, after = rest.partition(closing)
        if not start or not end:
            raise UserError(f"{readme} lacks the line {closing if start else opening}: put it where the figures go")
        text = f"{before}{opening}\n{block}\n{closing}{after}"
    write_text(readme, text)


def main() -> None:
    with command("readme"):
        write_results()


if __name__ == "__main__":
    main()
