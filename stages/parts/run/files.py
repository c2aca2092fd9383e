"""Files: hashes, JSON, CSV, and writes that are whole or do not happen."""

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stages.parts.run.errors import UserError

# The disk is full, a quota is used up, or a file reaches the process's size limit (`ulimit -f`).
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

csv.field_size_limit(sys.maxsize)


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file to read. Raises FileNotFoundError, and UserError for what may not be read or is no file: a pipe or a
    device would have its reader wait for ever.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer. Files and their readers know no difference.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        kind = "a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "a pipe or a device"
        os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}): it has to be a file") from None
    raise UserError(f"{path} is {kind}: name a file")


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Do the same for a text, whose lines end at \\n alone: a text of a row may hold U+2028, or a carriage return."""
    return io.TextIOWrapper(open_bytes(path), encoding, newline="\n")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with open_bytes(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, but: Collection[str] = ()) -> str:
    """Return one sha256 of the names and contents of all files in a folder and below, less those named in `but`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in but):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def fingerprint(text: str) -> str:
    """Return 16 hex digits that change with the text: a name for what is made from it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def whole_file(path: Path, token: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` if, and only if, the block ends without an error.

    A process that is killed leaves the temporary path. With a `token`, which no other writer in the folder may have at
    the time, the next call takes it over.
    A file that is replaced keeps its mode; a new one has the process's usual one. Of a link the target is replaced.
    Raises UserError for anything else than a file (a folder, a pipe, a device), and for a disk without room.
    """
    try:
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and not stat.S_ISREG(mode):
            raise UserError(f"{path} can't be written: it is not a file; name another path")
        if mode is not None and path.is_symlink() and not mode & stat.S_IWUSR:  # DVC's cache, linked into the workspace
            raise UserError(f"{path} can't be written: it is a link to a read-only file; remove the link")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name of its own: that of `path` may be as long as names can be.
        draft = target.with_name(f".draft-{token or secrets.token_hex(8)}")
        draft.touch(exist_ok=bool(token))
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise cannot_write(path, error) from None
    try:
        yield draft
        if mode is not None:
            draft.chmod(stat.S_IMODE(mode))
        draft.replace(target)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise cannot_write(path, error) from None
    finally:
        draft.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError | RuntimeError) -> UserError:
    """Return the error in one line, with what to do."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    remedy = {errno.ENAMETOOLONG: "choose a shorter name", errno.EFBIG: "raise the limit (ulimit -f)"}.get(
        number or 0, "free some space" if number in NO_ROOM else "name a path that you may write to"
    )
    return UserError(f"{str(path)[:200]} can't be written ({reason}): {remedy}")


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON with characters as they are, but escaped if UTF-8 can't hold them (halves of surrogate pairs)."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    with jsonl_writer(path) as write:
        for row in rows:
            write(row)


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that adds a row to a file of JSON lines, which is written if the block ends without an error."""
    with whole_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda row: print(json_text(row), file=file)


def read_json(path: Path) -> Any:
    try:
        with open_text(path) as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, which makes it") from None
    except (ValueError, RecursionError) as error:  # of the JSON, or of its UTF-8
        raise UserError(f"{path} is not JSON ({error}): remove it and run `dvc repro`") from None


def iter_jsonl(path: Path) -> Iterator[Any]:
    """Yield the rows of a file of JSON lines."""
    try:
        with open_text(path) as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, which makes it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds a line that is not JSON ({error}): remove it and run `dvc repro`") from None


def read_jsonl(path: Path) -> list[Any]:
    return list(iter_jsonl(path))


def csv_line(values: Iterable[Any]) -> str:
    """Return a line of CSV; None is empty, and fields that hold a quote, a comma or a line end are quoted."""
    line = io.StringIO(newline="")
    # Python before 3.11.9 quotes a carriage return only if it is part of the writer's own line end, which \r\n is.
    csv.writer(line).writerow(values)
    return line.getvalue().removesuffix("\r\n") + "\n"


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]], token: str = "") -> None:
    """Write a CSV file; None and NaN are empty fields. `token` is that of `whole_file`."""
    with whole_file(path, token) as draft, draft.open("w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(csv_line(header))
        for row in rows:
            file.write(csv_line(None if value != value else value for value in row))


def iter_csv(path: Path) -> Iterator[list[str]]:
    """Yield the header of a CSV file in UTF-8, then its rows, blank lines as empty lists.

    Raises what `open_bytes` does, UserError for a header that does not name each column once, csv.Error for what is not
    CSV, and UnicodeDecodeError.
    """
    # Lines end at \n alone: a carriage return outside quotes is then an error rather than the end of a row.
    with open_text(path, "utf-8-sig") as file:  # -sig: Excel begins a file with a byte order mark
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        shown = ", ".join(header)[:200]
        if len(header) == 1 and (";" in shown or "\t" in shown):
            raise UserError(f"{path} has semicolons or tabs between its columns ({shown!r}): save it with commas")
        if any(not name.strip() for name in header):
            raise UserError(f"{path} has a column without a name in its header ({shown}): name it or remove it")
        if len(set(header)) < len(header):
            raise UserError(f"{path} has a column twice in its header ({shown}): rename one")
        yield header
        yield from rows


def csv_fault(error: csv.Error) -> str:
    """Return what is wrong with a row that is not CSV, and what to do."""
    if "new-line character" in str(error):
        return "has a carriage return outside quotes: quote that text, or save the file with other line ends"
    return f"is not CSV ({error}): close every quote, and double those inside a text"


@contextmanager
def whole_folder(to: Path, own: Collection[str] = ("*",)) -> Iterator[Path]:
    """Yield a folder beside `to` to write into, which becomes `to` if, and only if, the block ends without an error.

    Raises UserError if `to` is not a folder, or holds a file that matches none of the patterns `own`, which would be
    lost.
    """
    target = to.resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{to} can't be written: it is not a folder; name another path")
    files = (file.relative_to(target) for file in target.rglob("*") if not file.is_dir() or file.is_symlink())
    for file in files if target.exists() else ():
        if not any(fnmatch(str(file), pattern) for pattern in own):
            raise UserError(f"{to} holds {file}, which would be lost: move it away, or name another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=".draft-", ignore_cleanup_errors=True)
    except OSError as error:
        raise cannot_write(to, error) from None
    with scratch:
        draft, old = Path(scratch.name) / target.name, Path(scratch.name) / ".replaced"
        try:
            yield draft
            if target.exists():
                target.rename(old)
            try:
                draft.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise cannot_write(to, error) from None
