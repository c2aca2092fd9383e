"""What people decided about rows: data/review/decisions.csv, which Git tracks and anyone may edit by hand."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stages.parts.data.tables import Faults
from stages.parts.run.errors import UserError
from stages.parts.run.files import whole_file
from stages.parts.task.labels import clean_label


@dataclass(frozen=True)
class Decision:
    """A person's label for a row (`id` is the text's, rows.row_id). `was`: what the teacher had said; `when`: ISO 8601,
    in UTC.
    """

    id: str
    label: str
    was: str
    when: str


COLUMNS = [field.name for field in fields(Decision)]


def read_decisions(path: Path, labels: Sequence[str]) -> dict[str, Decision]:
    """The decisions by row; of several about one row the last. Empty where there is no file. Raises UserError with all
    faults of the file.

    Only `id` and `label` are needed, so that a row is soon written by hand.
    """
    if not path.is_file():
        return {}
    faults, decisions = Faults(path), {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # with the mark that Excel puts first
            lines = list(file)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
    reader = csv.DictReader(lines, restval="")
    if missing := {"id", "label"} - set(reader.fieldnames or ()):
        raise UserError(f"{path} has no column {' and '.join(sorted(missing))}: its first line is {','.join(COLUMNS)}")
    for number, row in enumerate(reader, start=1):
        decision = Decision(**{name: (row.get(name) or "").strip() for name in COLUMNS})
        label = clean_label(decision.label)
        if not decision.id:
            faults.add(number, "it has no id")
        elif label not in labels:
            faults.add(
                number, f"{decision.label!r} is none of this run's {len(labels)} labels: mend it, or remove the row"
            )
        decisions[decision.id] = Decision(decision.id, label, decision.was, decision.when)
    faults.stop()
    return decisions


def add_decisions(path: Path, decisions: Iterable[Decision]) -> None:
    """Append decisions; they are on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        writer = csv.DictWriter(
            file, columns_of(file.readline()) or COLUMNS, extrasaction="ignore", lineterminator="\n"
        )
        if not file.seek(0, os.SEEK_END):
            writer.writeheader()
        else:
            file.seek(file.tell() - 1)
            if file.read(1) != "\n":  # an editor that writes no last line end
                file.write("\n")
        writer.writerows(map(asdict, decisions))
        file.flush()
        os.fsync(file.fileno())


def take_back(path: Path, decision: Decision) -> None:
    """Remove a decision that was added last; raises UserError where something else was written behind it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    columns = columns_of(lines[0]) if lines else []
    written = [asdict(decision).get(name, "") for name in columns]
    if len(lines) < 2 or next(csv.reader([lines[-1]])) != written:
        raise UserError(f"{path} was changed meanwhile: mend its last rows by hand")
    with whole_file(path) as draft:
        draft.write_text("".join(lines[:-1]), encoding="utf-8")


def columns_of(line: str) -> list[str]:
    """The columns that a file's first line names, in the order that people may have given them."""
    return next(csv.reader([line.removeprefix("\ufeff")]), [])
