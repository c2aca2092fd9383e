"""A folder of your own: pool, gold, labels, test. data/README.md is its contract."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from stages.parts.data.label_changes import ANSWERED, read_answered, read_was, renames, with_answers
from stages.parts.data.rows import EXTRA_PREFIX
from stages.parts.data.tables import FORMATS, Faults, KnownLabels, name_fault, read_table, records
from stages.parts.run.errors import UserError
from stages.parts.task.labels import clean_label

NEEDED = ("pool", "gold")
SERVED = "served"  # the part that `python -m stages.parts.traffic export` writes


def read_folder(folder: Path, text_column: str, label_column: str) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return the tables `pool`, `gold` and, if there is such a file, `test`; and the labels in order with their
    descriptions, which may be empty. Rows have the answers that `make relabel` kept (label_changes.py).

    The labels are those of labels.csv, or the names in gold by falling count. Raises UserError for what is missing or
    wrong.
    """
    tables, labels = read_files(folder, text_column, label_column)
    answered = read_answered(folder / ANSWERED, list(labels))
    return {part: with_answers(table, answered) for part, table in tables.items()}, labels


def read_files(folder: Path, text_column: str, label_column: str) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Return what `read_folder` does, without kept answers."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: set raw.folder to yours, or make one with `make new-data FOLDER={folder}`"
        )
    files = {part: part_file(folder, part) for part in (*NEEDED, "test", SERVED)}
    for part in NEEDED:
        if files[part] is None:
            raise UserError(f"{folder} holds no {part}.csv, {part}.jsonl or {part}.parquet: add one of them")

    labels, known, renamed = {}, None, dict[str, str]()
    if (folder / "labels.csv").exists():
        labels = read_labels(folder / "labels.csv")
        renamed = renames(labels, read_was(folder / "labels.csv"))
        known = KnownLabels(labels, folder / "labels.csv", renamed)
    tables = {}
    for part in ("gold", "test", "pool"):
        if path := files[part]:
            table = read_table(path, text_column, None if part == "pool" else label_column, known)
            tables[part] = table if part == "pool" else table.assign(label=table.label.replace(renamed))
        if part == "gold" and not known:
            labels = dict.fromkeys(by_frequency(tables["gold"].label), "")
            known = KnownLabels(labels, files["gold"] or folder)
    if path := files[SERVED]:
        served = read_served(path, text_column, label_column, labels, renamed)
        tables["pool"] = pd.concat([served, tables["pool"]], ignore_index=True)  # of two equal texts the first stays
    if len(labels) < 2:
        raise UserError(
            f"{known.path if known else folder} names {len(labels)} label: there have to be two or more to choose from"
        )
    return tables, labels


def read_served(
    path: Path, text_column: str, label_column: str, labels: Collection[str], renamed: Mapping[str, str]
) -> pd.DataFrame:
    """Return texts for the pool with the labels that a teacher gave them elsewhere, as `teacher_label`.

    Rows without a label, or with one that this task does not have, are for the teacher to label.
    """
    table = read_table(path, text_column)
    given = EXTRA_PREFIX + label_column
    if given not in table:
        raise UserError(f"{path} has no column {label_column!r}: it holds the teacher's labels, which may be empty")
    clean = table.pop(given).map(clean_label, na_action="ignore").replace(dict(renamed))
    return table.assign(teacher_label=clean.where(clean.isin(labels)).astype(object))


def part_file(folder: Path, part: str) -> Path | None:
    """Return the folder's file of a part, or None; raise UserError if there are several."""
    found = [folder / f"{part}{suffix}" for suffix in FORMATS if (folder / f"{part}{suffix}").exists()]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(path.name for path in found)}: keep one")
    return found[0] if found else None


def by_frequency(labels: pd.Series) -> list[str]:
    """Return the distinct names by falling count, then by name."""
    counts = labels.value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], name))


def read_labels(path: Path) -> dict[str, str]:
    """Return clean label names with their descriptions, which may be empty, from a CSV file `name,description`, in its
    order; raise UserError with all faults of the file.
    """
    faults = Faults(path)
    labels: dict[str, str] = {}
    for number, record in records(path, faults):
        if "name" not in record:
            raise UserError(f"{path} has no column 'name' but {', '.join(record)}: its header is name,description")
        name = clean_label(record["name"])
        if fault := name_fault(record["name"]):
            faults.add(number, f"name {fault}")
        elif name in labels:
            faults.add(number, f"{name!r} is named twice: keep one")
        else:
            labels[name] = " ".join(record.get("description", "").split())
    faults.stop()
    if not labels:
        raise UserError(f"{path} names no label: add rows of name,description or remove the file")
    return labels
