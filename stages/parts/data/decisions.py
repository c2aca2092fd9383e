"""What people decided about rows: data/review/decisions.csv, which Git tracks and anyone may edit by hand.

The contract: decisions are in the file when `add_decisions` returns, and the file is replaced as a whole, so that a
killed process (`kill -9` included) or a full disk leaves no half line. Half a line could be another decision: one label
may begin another. Several processes may add at once.
"""

import csv
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stages.parts.data.tables import Faults
from stages.parts.run.errors import UserError
from stages.parts.run.files import csv_fault, csv_line, iter_csv, open_text, whole_file
from stages.parts.task.labels import clean_label


@dataclass(frozen=True)
class Decision:
    """A person's label for a row (`id` is rows.row_id of its text). `was`: the teacher's label; `when`: ISO 8601, in
    UTC.
    """

    id: str
    label: str
    was: str
    when: str


COLUMNS = [field.name for field in fields(Decision)]


def read_decisions(path: Path, labels: Sequence[str]) -> dict[str, Decision]:
    """Return the decisions by row, of several about one row the last; none if there is no file. Raise UserError with
    all faults of the file.

    Only the columns `id` and `label` are needed, so that a row is quickly written by hand.
    """
    if not path.exists():
        return {}
    faults, decisions, number = Faults(path), {}, 0
    rows = iter_csv(path)
    try:
        header = next(rows) or COLUMNS
        if missing := {"id", "label"} - set(header):
            raise UserError(
                f"{path} has no column {' and '.join(sorted(missing))}: its first line is {','.join(COLUMNS)}"
            )
        for number, values in enumerate((row for row in rows if row), start=1):
            row = dict(zip(header, values, strict=False))
            decision = Decision(**{name: row.get(name, "").strip() for name in COLUMNS})
            label = clean_label(decision.label)
            if len(values) > len(header):
                faults.add(number, f"it has more than {len(header)} fields: quote what holds a comma")
            elif any("\n" in value or "\r" in value for value in asdict(decision).values()):
                faults.add(number, "it goes over several lines: a quote is open")
            elif not decision.id:
                faults.add(number, "it has no id")
            elif label not in labels:
                faults.add(
                    number, f"{decision.label!r} is none of this run's {len(labels)} labels: mend it, or remove the row"
                )
            decisions[decision.id] = Decision(decision.id, label, decision.was, decision.when)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
    except csv.Error as error:
        faults.add(number + 1, csv_fault(error))
    faults.stop()
    return decisions


def add_decisions(path: Path, decisions: Iterable[Decision]) -> None:
    """Add decisions; they are on the disk when this returns. Raises UserError, and adds none, if they can't be."""

    def added(text: str) -> str:
        header = columns_of(text) or COLUMNS
        if not text.removeprefix("\ufeff"):
            text += csv_line(header)
        elif not text.endswith("\n"):  # an editor that writes no last line end
            text += "\n"
        values = map(asdict, decisions)
        return text + "".join(csv_line(row.get(name, "") for name in header) for row in values)

    rewrite(path, added)


def take_back(path: Path, decision: Decision) -> None:
    """Remove the decision that was added last; raise UserError if the file does not end with it."""

    def removed(text: str) -> str:
        line = csv_line(asdict(decision).get(name, "") for name in columns_of(text))
        kept = text.removesuffix(line)
        if kept == text or not kept.endswith("\n"):
            raise UserError(f"{path} has changed meanwhile: mend its last rows by hand")
        return kept

    rewrite(path, removed)


def rename_in_decisions(path: Path, names: Mapping[str, str]) -> None:
    """Replace former label names with the present ones, in the person's label and in the teacher's; other lines stay
    unchanged.
    """

    def renamed(text: str) -> str:
        head, *lines = text.splitlines(keepends=True) or [""]
        places = [place for place, name in enumerate(columns_of(head)) if name in ("label", "was")]
        for number, line in enumerate(lines):
            values = next(csv.reader([line]), [])
            former = {place: clean_label(values[place]) for place in places if place < len(values)}
            if not names.keys().isdisjoint(former.values()):
                found = [names.get(former.get(place, ""), value) for place, value in enumerate(values)]
                lines[number] = csv_line(found)
        return "".join([head, *lines])

    if names and path.exists():
        rewrite(path, renamed)


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Replace the file's text, of UTF-8 with its line ends as they are, by what `change` makes of it."""
    with locked(path.parent):
        try:
            with open_text(path) as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
        changed = change(text)
        with whole_file(path) as draft, draft.open("wb") as file:
            file.write(changed.encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that do so, too, from the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}): decisions go there") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def columns_of(text: str) -> list[str]:
    """Return the columns that a file's first line names, in the order that people may have given them."""
    return next(csv.reader([text.removeprefix("\ufeff").partition("\n")[0]]), [])
