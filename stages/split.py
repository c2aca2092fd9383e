"""Split into hand-labelled gold, an unlabelled pool and test; the pool's true labels, if it has any, are sealed.

Pool rows that a person decided about in `make review` are apart: the teacher and the student learn from them as from
gold, but they were chosen for being hard, so nothing is scored or calibrated on them.

python -m stages.split
"""

import random
from typing import NamedTuple

import pandas as pd

from stages.parts.data.decisions import read_decisions
from stages.parts.data.leaks import near_duplicates
from stages.parts.data.rows import as_rows, read_rows
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json, write_jsonl
from stages.parts.run.params import Params, Split, load_params
from stages.parts.run.stage import run_stage


class Parts(NamedTuple):
    """The rows of a split, with the columns of data/filtered."""

    gold: pd.DataFrame
    pool: pd.DataFrame
    test: pd.DataFrame


def shuffled(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows in an order that depends on their texts and the seed, not on the order of a file."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return rows.sort_values("id").iloc[order]


def parts_of(rows: pd.DataFrame, params: Params) -> Parts:
    """Return gold, pool and test; test is empty if a folder has no test file.

    Of a benchmark the first `split.gold` training rows are gold; the others are the pool. A folder has its own.
    """
    learned, test = shuffled(rows[rows.part.isin(("train", "gold", "pool"))], params.seed), rows[rows.part == "test"]
    if not (learned.part == "train").any():
        return Parts(learned[learned.part == "gold"], learned[learned.part == "pool"], test)
    if params.split.gold >= len(learned):
        raise UserError(
            f"split.gold={params.split.gold} leaves no pool of {len(learned)} training rows: lower it or bring more "
            f"rows"
        )
    return Parts(learned[: params.split.gold], learned[params.split.gold :], test)


def with_test(parts: Parts, share: float) -> Parts:
    """Return the parts with a share of the gold rows as test: the same share of every label, as far as its rows go (a
    systematic sample of the rows sorted by label).

    Raises UserError if one of the two would be empty.
    """
    by_label = parts.gold.sort_values("label", kind="stable")
    is_test = pd.Series(
        [int((number + 1) * share) > int(number * share) for number in range(len(by_label))], by_label.index
    )[parts.gold.index]
    if is_test.all() or not is_test.any():
        raise UserError(
            f"split.test_share={share} of {len(is_test)} gold rows leaves {int((~is_test).sum())} to learn from and "
            f"{int(is_test.sum())} to score on: change it, label more rows, or bring a test file"
        )
    return parts._replace(gold=parts.gold[~is_test], test=parts.gold[is_test])


def without_reviewed(parts: Parts, decided: dict[str, str]) -> tuple[Parts, pd.DataFrame]:
    """Return the parts without the pool rows that people decided about, and these rows with the people's labels."""
    is_reviewed = parts.pool.id.isin(decided)
    reviewed = parts.pool[is_reviewed]
    return parts._replace(pool=parts.pool[~is_reviewed]), reviewed.assign(label=[decided[row] for row in reviewed.id])


def note_unused(decided: dict[str, str], rows: pd.DataFrame, reviewed: pd.DataFrame) -> dict[str, int]:
    """Return how many decisions are about a row outside the pool (gold, test), how many of them differ from the row's
    label, and how many are about no row; print the first and the last.
    """
    elsewhere = sorted(decided.keys() & set(rows.id) - set(reviewed.id))
    labels = dict(zip(rows.id, rows.label, strict=True))
    nowhere = sorted(decided.keys() - set(rows.id))
    for ids, why in ((elsewhere, "about gold or test rows, which keep their labels"), (nowhere, "about no row")):
        if ids:
            shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            print(f"{paths.DECISIONS}: {len(ids)} of {len(decided)} decisions are {why}: {shown}")
    return {
        "decisions_about_gold_or_test": len(elsewhere),
        "decisions_that_differ": sum(pd.notna(labels[row]) and decided[row] != labels[row] for row in elsewhere),
        "decisions_about_no_row": len(nowhere),
    }


def check_pool(pool: pd.DataFrame, split: Split) -> None:
    """Refuse a pool too small for the rows that `sft` holds out, before a teacher is paid for it."""
    if len(pool) < split.rows_needed:
        raise UserError(
            f"{len(pool)} pool rows are too few to hold out {split.held_out_rows}: lower split.dev ({split.dev}) and "
            f"split.optimizer_val ({split.optimizer_val}), or bring {split.rows_needed - len(pool)} rows more"
        )


def main() -> None:
    params = load_params()
    rows = read_rows(paths.FILTERED_ROWS)
    parts = parts_of(rows, params)
    decisions = read_decisions(paths.DECISIONS, read_json(paths.LABELS))
    decided = {row: decision.label for row, decision in decisions.items()}
    parts, reviewed = without_reviewed(parts, decided)
    unused = note_unused(decided, rows, reviewed)
    check_pool(parts.pool, params.split)
    test_from = "gold" if parts.test.empty else "file"
    if parts.test.empty:
        parts = with_test(parts, params.split.test_share)

    out_of_scope, sealed = rows[rows.part == "out_of_scope"], parts.pool[parts.pool.label.notna()]
    write_jsonl(paths.GOLD, as_rows(parts.gold))
    write_jsonl(paths.REVIEWED, as_rows(reviewed))
    write_jsonl(paths.POOL, as_rows(parts.pool.drop(columns="label")))
    write_jsonl(paths.TEST, as_rows(parts.test))
    write_jsonl(paths.SEALED, ({"id": row["id"], "label": row["label"]} for row in as_rows(sealed)))
    write_jsonl(paths.OUT_OF_SCOPE, as_rows(out_of_scope.drop(columns="label")))
    report = {
        "gold": len(parts.gold),
        "reviewed": len(reviewed),
        **unused,
        "pool": len(parts.pool),
        "test": len(parts.test),
        "test_from": test_from,
        "sealed": len(sealed),
        "out_of_scope": len(out_of_scope),
        "near_duplicates": near_duplicates(parts.pool.text.tolist(), [*parts.gold.text, *parts.test.text]),
    }
    write_json(paths.SPLIT_REPORT, report)
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    run_stage(main)
