"""Choose the labels, and leave out the rows that would spoil the numbers.

python -m stages.filter
"""

from collections.abc import Sequence

import pandas as pd

from stages.parts.data.folder import by_frequency
from stages.parts.data.left_out import leave_out
from stages.parts.data.rows import read_rows, row_id
from stages.parts.data.tables import refuse_alike
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, whole_file, write_json
from stages.parts.run.params import OtherLabels, load_params
from stages.parts.run.paths import DESCRIPTIONS, FILTER_REPORT, FILTERED_ROWS, LABELS, RAW_LABELS, RAW_ROWS
from stages.parts.run.stage import run_stage
from stages.parts.task.labels import NONE_OF_THESE


def most_frequent(labels: pd.Series, top_n: int) -> list[str]:
    """Return the `top_n` most frequent names, by falling count, then by name; raise UserError if there are fewer."""
    names = by_frequency(labels)
    if len(names) < top_n:
        raise UserError(f"the training rows have {len(names)} labels, fewer than top_n={top_n}: lower top_n")
    return names[:top_n]


def treat_other_labels(
    rows: pd.DataFrame, labels: list[str], other_labels: OtherLabels
) -> tuple[pd.DataFrame, list[str]]:
    """Return rows and labels after `other_labels` is applied to the rows whose label is not among `labels`.

    `drop`: test rows become the part `out_of_scope`, without a label, to see what the service does with texts that no
    label fits; the others keep their label, for `rows_of` to drop. `none_of_these`: all of them get that label.
    """
    other = rows.label.notna() & ~rows.label.isin(labels)
    if other_labels == "none_of_these" and other.any():
        return rows.assign(label=rows.label.mask(other, NONE_OF_THESE)), [*labels, *({NONE_OF_THESE} - set(labels))]
    out_of_scope = other & (rows.part == "test")
    return rows.assign(part=rows.part.mask(out_of_scope, "out_of_scope"), label=rows.label.mask(out_of_scope)), labels


def rows_of(rows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return the rows with one of the labels, or with none (a folder's pool, out-of-scope rows), with their ids."""
    kept = rows[rows.label.isna() | rows.label.isin(labels)]
    return kept.assign(id=[row_id(text) for text in kept.text])


def main() -> None:
    params = load_params()
    rows, named = read_rows(RAW_ROWS), read_json(RAW_LABELS)
    benchmark = "train" in set(rows.part)  # otherwise a folder, which names its labels itself
    labels = most_frequent(rows.label[rows.part == "train"], params.top_n) if benchmark else list(named)

    refuse_alike(labels)
    rows, labels = treat_other_labels(rows, labels, params.other_labels)
    kept, left_out = leave_out(rows_of(rows, labels))
    counts = {str(part): int((kept.part == part).sum()) for part in rows.part.unique()}
    for part in ("train", "test") if benchmark else ("gold", "pool"):
        if not counts.get(part):
            raise UserError(
                f"no {part} row has one of the {len(labels)} labels (left out: {left_out}): check the file and top_n"
            )

    with whole_file(FILTERED_ROWS) as draft:
        kept.to_parquet(draft, index=False)
    write_json(LABELS, labels)
    write_json(DESCRIPTIONS, {label: named[label] for label in labels if named.get(label)})
    other = len(rows) - len(kept) - sum(left_out.values())
    write_json(FILTER_REPORT, {"labels": len(labels), "rows": counts, "other_labels": other, "left_out": left_out})
    print(f"{counts} with {len(labels)} labels; left out: {left_out}")


if __name__ == "__main__":
    run_stage(main)
