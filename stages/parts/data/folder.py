"""A folder of your own: pool, gold, labels, test. data/README.md is its contract."""

from pathlib import Path

import pandas as pd

from stages.parts.data.tables import FORMATS, Faults, KnownLabels, name_fault, read_table, records
from stages.parts.run.errors import UserError
from stages.parts.task.labels import clean_label

NEEDED = ("pool", "gold")


def read_folder(folder: Path, text_column: str, label_column: str) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables `pool`, `gold` and, where there is one, `test`; and the labels in order with their descriptions, ""
    where there is none.

    The labels are those of labels.csv, or the names in gold by falling count. Raises UserError for what is missing or
    wrong.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: set raw.folder to yours, or make one with `make new-data FOLDER={folder}`"
        )
    files = {part: the_file(folder, part) for part in (*NEEDED, "test")}
    for part in NEEDED:
        if files[part] is None:
            raise UserError(f"{folder} holds no {part}.csv, {part}.jsonl or {part}.parquet: add one of them")

    labels, known = {}, None
    if (folder / "labels.csv").exists():
        labels = read_labels(folder / "labels.csv")
        known = KnownLabels(labels, folder / "labels.csv")
    tables = {}
    for part in ("gold", "test", "pool"):
        if path := files[part]:
            tables[part] = read_table(path, text_column, None if part == "pool" else label_column, known)
        if part == "gold" and not known:
            labels = dict.fromkeys(by_frequency(tables["gold"].label), "")
            known = KnownLabels(labels, files["gold"] or folder)
    if len(labels) < 2:
        raise UserError(
            f"{known.path if known else folder} names {len(labels)} label: there have to be two or more to choose from"
        )
    return tables, labels


def the_file(folder: Path, part: str) -> Path | None:
    """The folder's file of a part; None where there is none, UserError where there are several."""
    found = [folder / f"{part}{suffix}" for suffix in FORMATS if (folder / f"{part}{suffix}").exists()]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(path.name for path in found)}: keep one")
    return found[0] if found else None


def by_frequency(labels: pd.Series) -> list[str]:
    """The distinct names by falling count, then by name."""
    counts = labels.value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], name))


def read_labels(path: Path) -> dict[str, str]:
    """Clean label names with their descriptions ("" where there is none) from a CSV file `name,description`, in its
    order; raises UserError with all faults of the file."""
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
