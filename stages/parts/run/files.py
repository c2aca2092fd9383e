"""Files: hashes, JSON, and writes that are whole or not there at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.parts.run.errors import UserError


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One sha256 over the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def fingerprint(text: str) -> str:
    """16 hex digits that change with the text: the name of what is kept under all that shapes it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if, and only if, the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    with jsonl_writer(path) as write:
        for row in rows:
            write(row)


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that adds a row to a file of JSON lines, which is there if the block ends well."""
    with whole_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, which makes it") from None
    except ValueError as error:  # of the JSON, or of its UTF-8
        raise UserError(f"{path} is not JSON ({error}): remove it and run `dvc repro`") from None


def iter_jsonl(path: Path) -> Iterator[Any]:
    """The rows of a file of JSON lines, one at a time."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # a text may hold U+2028
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, which makes it") from None
    except ValueError as error:
        raise UserError(f"{path} holds a line that is not JSON ({error}): remove it and run `dvc repro`") from None


def read_jsonl(path: Path) -> list[Any]:
    return list(iter_jsonl(path))


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` to write into, which takes its place if, and only if, the block ends well."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as scratch:
        draft = Path(scratch) / to.name
        yield draft
        if to.exists():
            shutil.rmtree(to)
        draft.rename(to)
