"""Clean the label names and keep the rows of the most frequent ones.

python -m stages.filter
"""

from collections import Counter

from stages.parts.data.rows import Query, row_id
from stages.parts.data.sources import Rows, read_csv
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.paths import FILTERED, LABELS, RAW
from stages.parts.run.stage import run_stage
from stages.parts.task.labels import clean_label


def most_frequent(names: list[str], top_n: int) -> list[str]:
    """The `top_n` most frequent names, by falling count, then by name; raises UserError where there are fewer."""
    counts = Counter(names)
    if len(counts) < top_n:
        raise UserError(f"the training rows have {len(counts)} labels, fewer than top_n={top_n}: lower top_n")
    return sorted(counts, key=lambda name: (-counts[name], name))[:top_n]


def queries(rows: Rows, labels: list[str]) -> list[Query]:
    """The rows under one of the labels, each text once, with ids and clean label names."""
    kept = {row_id(text): Query(id=row_id(text), text=text, label=clean_label(label)) for text, label in rows}
    return [query for query in kept.values() if query["label"] in labels]


def main() -> None:
    params = load_params()
    rows = {part: read_csv(RAW / f"{part}.csv", "text", "category") for part in ("train", "test")}
    labels = most_frequent([clean_label(label) for _, label in rows["train"]], params.top_n)
    for part, part_rows in rows.items():
        kept = queries(part_rows, labels)
        if not kept:
            raise UserError(f"no {part} row has one of the {params.top_n} most frequent labels")
        write_jsonl(FILTERED / f"{part}.jsonl", kept)
        print(f"{part}: {len(kept)} of {len(part_rows)} rows under {len(labels)} labels")
    write_json(LABELS, labels)


if __name__ == "__main__":
    run_stage(main)
