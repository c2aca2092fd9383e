"""Split into hand-labelled gold, an unlabelled pool and test; the pool's true labels, where there are any, are sealed.

Pool rows that a person decided about in `make review` are apart: the teacher and the student learn from them as from
gold, but they were chosen for being hard, so nothing is scored or calibrated on them.

python -m stages.split
"""

import random

import pandas as pd

from stages.parts.data.decisions import read_decisions
from stages.parts.data.left_out import near_duplicates
from stages.parts.data.rows import as_rows
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json, write_jsonl
from stages.parts.run.params import Split, load_params
from stages.parts.run.paths import (
    DECISIONS,
    FILTERED_ROWS,
    GOLD,
    LABELS,
    OUTSIDE,
    POOL,
    REVIEWED,
    SEALED,
    SPLIT_REPORT,
    TEST,
)
from stages.parts.run.stage import run_stage


def shuffled(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows in an order that depends on their texts and the seed, not on the order of a file."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return rows.sort_values("id").iloc[order]


def set_apart(gold: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gold without a share of its rows, and these: of every label alike, as far as its rows go (a systematic sample of
    the rows by label).

    Raises UserError where one of the two would be empty.
    """
    by_label = gold.sort_values("label", kind="stable")
    taken = [int((number + 1) * share) > int(number * share) for number in range(len(gold))]
    check, rest = by_label[taken], by_label[[not out for out in taken]]
    if check.empty or rest.empty:
        raise UserError(
            f"split.test_share={share} of {len(gold)} gold rows leaves {len(rest)} to learn from and {len(check)} "
            f"to score on: change it, label "
            "more rows, or bring a test file"
        )
    return rest.loc[gold.index.intersection(rest.index)], check.loc[gold.index.intersection(check.index)]


def check_pool(pool: pd.DataFrame, split: Split) -> None:
    """Refuse a pool too small for the rows that `sft` holds out, before a teacher is paid for it."""
    if len(pool) < split.fewest:
        raise UserError(
            f"{len(pool)} pool rows are too few to hold out {split.held_out}: lower split.dev ({split.dev}) and "
            f"split.optimizer_val "
            f"({split.optimizer_val}), or bring {split.fewest - len(pool)} rows more"
        )


def main() -> None:
    params = load_params()
    rows = pd.read_parquet(FILTERED_ROWS)
    learned = shuffled(rows[rows.part.isin(("train", "gold", "pool"))], params.seed)
    test, outside = rows[rows.part == "test"], rows[rows.part == "outside"]
    if (learned.part == "train").any():  # a benchmark: the labels are there, and hidden
        if params.split.gold >= len(learned):
            raise UserError(
                f"split.gold={params.split.gold} leaves no pool of {len(learned)} training rows: lower it or bring "
                f"more rows"
            )
        gold, pool = learned[: params.split.gold], learned[params.split.gold :]
    else:
        gold, pool = learned[learned.part == "gold"], learned[learned.part == "pool"]
    decided = read_decisions(DECISIONS, read_json(LABELS))
    reviewed = pool[pool.id.isin(decided)]
    reviewed = reviewed.assign(label=[decided[row].label for row in reviewed.id])
    pool = pool[~pool.id.isin(decided)]
    check_pool(pool, params.split)
    test_from = "file"
    if test.empty:
        gold, test = set_apart(gold, params.split.test_share)
        test_from = "gold"

    sealed = pool[pool.label.notna()]
    write_jsonl(GOLD, as_rows(gold))
    write_jsonl(REVIEWED, as_rows(reviewed))
    write_jsonl(POOL, as_rows(pool.drop(columns="label")))
    write_jsonl(TEST, as_rows(test))
    write_jsonl(SEALED, ({"id": row["id"], "label": row["label"]} for row in as_rows(sealed)))
    write_jsonl(OUTSIDE, as_rows(outside.drop(columns="label")))
    report = {
        "gold": len(gold),
        "reviewed": len(reviewed),
        "pool": len(pool),
        "test": len(test),
        "test_from": test_from,
        "sealed": len(sealed),
        "outside": len(outside),
    }
    report["near_duplicates"] = near_duplicates(pool.text.tolist(), [*gold.text, *test.text])
    write_json(SPLIT_REPORT, report)
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    run_stage(main)
