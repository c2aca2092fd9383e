"""Shuffle, and split the training rows into hand-labelled gold and an unlabelled pool, whose true labels are sealed.

python -m stages.split
"""

import random

from stages.parts.data.rows import Query
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_jsonl, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.paths import FILTERED, GOLD, POOL, SEALED, TEST
from stages.parts.run.stage import run_stage


def main() -> None:
    params = load_params()
    rows: list[Query] = read_jsonl(FILTERED / "train.jsonl")
    if params.split.gold >= len(rows):
        raise UserError(f"split.gold={params.split.gold} leaves no pool of {len(rows)} training rows: lower it or bring more rows")
    rows.sort(key=lambda row: row["id"])  # so that the split depends on the texts and the seed, not on the order of a file
    random.Random(params.seed).shuffle(rows)
    gold, pool = rows[: params.split.gold], rows[params.split.gold :]
    write_jsonl(GOLD, gold)
    write_jsonl(POOL, [{"id": row["id"], "text": row["text"]} for row in pool])
    write_jsonl(SEALED, [{"id": row["id"], "label": row["label"]} for row in pool])
    write_jsonl(TEST, read_jsonl(FILTERED / "test.jsonl"))
    print(f"{len(gold)} gold, {len(pool)} in the pool")


if __name__ == "__main__":
    run_stage(main)
