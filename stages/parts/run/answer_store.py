"""Records that must survive whatever ends a run, because they cost money or time: one SQLite file, one record a key.

The contract:

- `put` returns once the record is in the file: a killed process (`kill -9` included) loses none. Commits go to the
  operating system, not to the disk one by one (synchronous = NORMAL), which would take milliseconds each: a power cut
  may take the last seconds' records, never earlier ones, and never damages the file.
- A record is there whole or not at all. A full disk, a limit on file size or a read-only file is a UserError, and the
  records from before stay readable.
- One process has the file open. A second one is refused with a UserError (also on network file systems: the lock is
  the file's, and nothing is in shared memory).
- A file that is damaged, or no database, is a UserError and stays as it is.
- Memory does not grow with the records: SQLite's cache of 2 MB, and a bit a record for `first_use`.

A log of JSON lines beside the file (NAME.jsonl for NAME.sqlite, each line a record with its `key`) is imported when the
file is opened, then renamed to NAME.jsonl.imported.
"""

import fcntl
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.parts.run.errors import UserError

KEY_LENGTH = 32  # hex digits
PRAGMAS = (
    "page_size = 1024",  # records of 1 to 3 KB fill such pages, and leave a third of larger ones empty
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "wal_autocheckpoint = 4000",  # pages: the log of commits moves into the file, synced, every 4 MB
)
# An update keeps its row's number, which `first_use` goes by.
PUT = "INSERT INTO answers VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET record = excluded.record"


class AnswerStore:
    """Records by key (32 hex digits) in an open file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.used = bytearray()  # a bit a row

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a key, or None; None also for one that is damaged."""
        found = self.execute("SELECT record FROM answers WHERE key = ?", bytes.fromhex(key)).fetchone()
        try:
            record: dict[str, Any] | None = json.loads(found[0]) if found else None
        except ValueError:
            return None
        return record

    def records(self) -> list[tuple[str, dict[str, Any]]]:
        """Return all keys and their records, the oldest first; for small stores."""
        rows = self.execute("SELECT key, record FROM answers ORDER BY rowid")
        return [(key.hex(), json.loads(record)) for key, record in rows]

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Write a record, in the place of the key's earlier one; raises UserError if the file does not take it."""
        self.execute(PUT, bytes.fromhex(key), json.dumps(record))

    def first_use(self, key: str) -> bool:
        """Return whether this is the first call for a key since the file was opened; the key must have a record.

        For what is counted once a run, however often it is read.
        """
        (row,) = self.execute("SELECT rowid FROM answers WHERE key = ?", bytes.fromhex(key)).fetchone()
        byte, bit = row // 8, 1 << row % 8
        self.used.extend(bytes(max(0, byte + 1 - len(self.used))))
        first = not self.used[byte] & bit
        self.used[byte] |= bit
        return first

    def remove(self) -> None:
        """Close the store and delete its file."""
        self.connection.close()  # first: it deletes the write-ahead log of a file that is still there
        self.path.unlink(missing_ok=True)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self.connection.execute(statement, values)
        except sqlite3.Error as error:
            raise file_error(self.path, error) from None

    def import_jsonl(self, log: Path, busy: str) -> None:
        """Take over a log of JSON lines, in which the last record of a key counts and a damaged line none."""
        with log.open("rb") as lines:
            try:
                fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever appends to such a log holds this lock
            except BlockingIOError:
                raise UserError(busy) from None
            self.execute("BEGIN")
            for line in lines:
                try:
                    record = json.loads(line)
                    key = bytes.fromhex(record.pop("key"))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                self.execute(PUT, key, json.dumps(record))
            self.execute("COMMIT")
        log.rename(log.with_name(f"{log.name}.imported"))


@contextmanager
def answer_store(path: Path, busy: str) -> Iterator[AnswerStore]:
    """Open the store in a file, which is made if it is missing, until the block ends.

    Raises UserError with `busy` if another process has it open, or one that names what is wrong with the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No waiting for a lock; each statement is a transaction of its own; one thread may open it, another use it.
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise file_error(path, error) from None
    try:
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, record TEXT NOT NULL)")
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise UserError(busy) from None
            raise file_error(path, error) from None
        store, log = AnswerStore(path, connection), path.with_suffix(".jsonl")
        if log.exists():
            try:
                store.import_jsonl(log, busy)
            except OSError as error:
                raise file_error(log, error) from None
        yield store
    finally:
        connection.close()


def file_error(path: Path, error: Exception) -> UserError:
    """Return what a user can do about a file that SQLite, or the operating system, has trouble with."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the details that SQLite adds in higher bits
    if code == sqlite3.SQLITE_FULL:
        return UserError(f"the disk is full (while writing {path}): free some space and run again, nothing is lost")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return UserError(f"{path} is damaged ({error}): `sqlite3 {path} .recover` saves what is readable; move it away")
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(f"{path} can't be read and written ({reason}): check its folder, its permissions and the disk")
