"""Served queries and their answers as rows, in one SQLite file.

The contract: a row is in the file before its answer is sent, so `kill -9` loses none; a power cut may lose the last
seconds. The file holds texts of users: rows older than `keep_days`, and the oldest beyond `keep_rows`, are deleted, and
`purge` deletes on demand. Deleted texts are overwritten with zeros (SQLite's secure_delete).
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Self

from stages.parts.run.answer_store import file_error
from stages.parts.students.prediction import Abstention
from stages.parts.traffic.shadow_rows import ShadowAnswer, ShadowedRow

AnsweredBy = Literal["student", "teacher"]
WatchName = Literal["audit", "drift", "teacher"]
DAY_S = 86_400
CLEAN_EVERY = 1_000  # rows added between two looks at the limits
TABLE = """CREATE TABLE IF NOT EXISTS served (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    text TEXT NOT NULL,
    label TEXT NOT NULL,
    confidence REAL NOT NULL,
    abstained TEXT,
    answered_by TEXT NOT NULL,
    model TEXT NOT NULL,
    teacher_label TEXT,
    teacher_confidence REAL,
    dollars REAL
)"""
SHADOWED = """CREATE TABLE IF NOT EXISTS shadowed (
    number INTEGER PRIMARY KEY,
    student_label TEXT NOT NULL,
    student_answers INTEGER NOT NULL,
    shadow_label TEXT NOT NULL,
    shadow_answers INTEGER NOT NULL,
    shadow TEXT NOT NULL
)"""  # of the served row with this number
OBSERVED = """CREATE TABLE IF NOT EXISTS observed (
    at REAL NOT NULL,
    watch TEXT NOT NULL,
    model TEXT NOT NULL,
    yes INTEGER NOT NULL
)"""  # what the change detectors of a student have seen
FORGET = """CREATE TRIGGER IF NOT EXISTS forget AFTER DELETE ON served
    BEGIN DELETE FROM shadowed WHERE number = OLD.number; END"""
SPENDING = "CREATE TABLE IF NOT EXISTS spending (day TEXT PRIMARY KEY, answers INTEGER NOT NULL, dollars REAL NOT NULL)"


@dataclass(frozen=True)
class ServedRow:
    """One query and its answer.

    `label` and `confidence` (in [0, 1]) are what the client got. `abstained` is the reason, None for an answer.
    `teacher_label` is the teacher's label if it was queried, whoever answered; `dollars` its price, if known. `at` is
    in seconds since 1970.
    """

    text: str
    label: str
    confidence: float
    abstained: Abstention | None
    answered_by: AnsweredBy
    model: str
    teacher_label: str | None = None
    teacher_confidence: float | None = None
    dollars: float | None = None
    at: float = 0.0


COLUMNS = [field.name for field in fields(ServedRow)]
INSERT = f"INSERT INTO served ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class TrafficStore:
    """Rows in the file at `path`, which is created if it is missing. Use it as a context manager, from one thread.

    Raises UserError if the file can't be opened or is not such a store.
    """

    def __init__(self, path: Path, keep_days: float, keep_rows: int) -> None:
        self.path = path
        self.keep_days, self.keep_rows = keep_days, keep_rows
        self.added = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may read or purge at the same time: its lock lasts milliseconds, so wait for it.
            self.file = sqlite3.connect(path, timeout=10, isolation_level=None)
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute("PRAGMA synchronous=NORMAL")
            self.file.execute("PRAGMA secure_delete=ON")
            self.file.execute(TABLE)
            for statement in (SPENDING, SHADOWED, FORGET, OBSERVED):
                self.file.execute(statement)
            self.file.execute(f"SELECT {', '.join(COLUMNS)} FROM served LIMIT 0")  # a table of somebody else's
            for table in ("served", "observed"):  # old rows are found without reading the others
                self.file.execute(f"CREATE INDEX IF NOT EXISTS {table}_at ON {table} (at)")
            self.delete_beyond_limits()
        except (sqlite3.Error, OSError) as error:
            raise file_error(path, error) from None

    def add(self, row: ServedRow) -> int:
        """Append a row, stamped with the time if it has none; returns its number. Raises OSError on a full disk."""
        values = asdict(row) | {"at": row.at or time.time()}
        number = self.write(INSERT, [values[name] for name in COLUMNS])
        self.count_added()
        return number

    def add_teacher(self, number: int, label: str, confidence: float | None, dollars: float | None) -> None:
        """Add the teacher's label, which came later, to a row; a row that was deleted meanwhile stays deleted."""
        change = "UPDATE served SET teacher_label = ?, teacher_confidence = ?, dollars = ? WHERE number = ?"
        self.write(change, [label, confidence, dollars, number])

    def add_shadowed(self, number: int, student: ShadowAnswer, shadow: ShadowAnswer, name: str) -> None:
        """Add what a shadow of this name says of a row, beside the served student's own prediction."""
        values = [number, student.label, student.answers, shadow.label, shadow.answers, name]
        self.write(
            "INSERT INTO shadowed SELECT ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM served WHERE number = ?)",
            [*values, number],
        )

    def shadowed(self) -> list[ShadowedRow]:
        """The rows that the latest shadow has predicted, with the teacher's label if it was queried."""
        found = self.file.execute(
            "SELECT student_label, student_answers, shadow_label, shadow_answers, teacher_label FROM shadowed "
            "JOIN served USING (number) WHERE shadow = (SELECT shadow FROM shadowed ORDER BY number DESC LIMIT 1)"
        )
        return [
            ShadowedRow(ShadowAnswer(own, bool(own_sure)), ShadowAnswer(label, bool(sure)), teacher)
            for own, own_sure, label, sure, teacher in found
        ]

    def add_observation(self, watch: WatchName, model: str, yes: bool) -> None:
        """Add what the change detector of a student saw; the teacher's has no model."""
        self.write("INSERT INTO observed VALUES (?, ?, ?, ?)", [time.time(), watch, model, yes])
        self.count_added()

    def observations(self, watch: WatchName, model: str) -> list[bool]:
        """What such a detector saw in the last `keep_days`, oldest first."""
        since = time.time() - self.keep_days * DAY_S
        found = self.file.execute(
            "SELECT yes FROM observed WHERE watch = ? AND model = ? AND at >= ? ORDER BY rowid", [watch, model, since]
        )
        return [bool(yes) for (yes,) in found]

    def add_spending(self, day: str, dollars: float) -> None:
        """Count one answer of the teacher, and what it cost, on a day (ISO 8601)."""
        change = "ON CONFLICT (day) DO UPDATE SET answers = answers + 1, dollars = dollars + excluded.dollars"
        self.write(f"INSERT INTO spending VALUES (?, 1, ?) {change}", [day, dollars])

    def spending(self, day: str) -> tuple[int, float]:
        """The teacher's answers on a day, and their price in dollars."""
        found = self.file.execute("SELECT answers, dollars FROM spending WHERE day = ?", [day]).fetchone()
        return found or (0, 0.0)

    def write(self, statement: str, values: Sequence[object]) -> int:
        try:
            return self.file.execute(statement, values).lastrowid or 0
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from None

    def rows(self, since: float = 0.0) -> Iterator[ServedRow]:
        """The rows served at or after `since` (seconds since 1970), oldest first."""
        found = self.file.execute(f"SELECT {', '.join(COLUMNS)} FROM served WHERE at >= ? ORDER BY number", [since])
        return (ServedRow(*values) for values in found)

    def __len__(self) -> int:
        return int(self.file.execute("SELECT count(*) FROM served").fetchone()[0])

    def purge(self, before: float | None = None) -> int:
        """Delete the rows served before a time, or all of them, and shrink the file; return how many."""
        deleted = self.file.execute("DELETE FROM served WHERE ? IS NULL OR at < ?", [before, before]).rowcount
        self.file.execute("VACUUM")
        self.file.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log holds texts, too
        return deleted

    def count_added(self) -> None:
        self.added += 1
        if self.added % CLEAN_EVERY == 0:
            self.delete_beyond_limits()

    def delete_beyond_limits(self) -> None:
        for table in ("served", "observed"):
            self.file.execute(f"DELETE FROM {table} WHERE at < ?", [time.time() - self.keep_days * DAY_S])
            newest = f"SELECT rowid FROM {table} ORDER BY rowid DESC LIMIT 1 OFFSET ?"
            self.file.execute(f"DELETE FROM {table} WHERE rowid <= ({newest})", [self.keep_rows])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
