"""Classify the rows of a CSV file with the served pair, on an engine of its own or the one at engine.api_base.

python -m serve.batch in.csv out.csv [--text-column text]

The output has the input's columns and label, confidence, abstained (and reasoning), in the input's order. A killed run goes on where it
was.
"""

import argparse
import asyncio
import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from tqdm import tqdm

from serve.engine_client import EngineClient, EngineError, QueryRefused, engine_client
from serve.student import Student, load_student
from stages.parts.errors import UserError
from stages.parts.labels import UNKNOWN
from stages.parts.params import load_params
from stages.parts.paths import cache
from stages.parts.records import row_id, whole_file
from stages.parts.stage import end_on_sigterm
from stages.parts.vllm_server import running

CHUNK = 256  # rows asked at a time and then kept
COLUMNS = ["label", "confidence", "abstained", "reasoning"]


def read_texts(path: Path, column: str) -> pd.DataFrame:
    """The rows as they are, all columns text; raises UserError for what can't be classified."""
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(rows.index, pd.RangeIndex):  # pandas would take the first column for the rows' names
        raise UserError(f"{path} has rows with more fields than its header: put texts that hold commas in quotes")
    if column not in rows:
        raise UserError(f"{path} has no column {column!r}; it has {', '.join(rows.columns)}: name one with --text-column")
    taken = [name for name in COLUMNS if name in rows]
    if taken:
        raise UserError(f"{path} has a column {taken[0]!r} already, which the output needs: rename it")
    return rows


@contextmanager
def only_here(kept: Path) -> Iterator[TextIO]:
    """The file of kept answers, open to read and append; raises UserError where another run writes it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another run is classifying the same rows") from None
        yield file


def answers_so_far(file: TextIO) -> list[dict[str, Any]]:
    """What an earlier run kept, but for a last line that was cut short."""
    file.seek(0)
    text = file.read()
    whole = text[: text.rfind("\n") + 1]
    file.truncate(len(whole))  # JSON with escapes: a character is a byte
    return [json.loads(line) for line in whole.splitlines()]


async def ask(client: EngineClient, student: Student, number: int, text: str) -> dict[str, Any]:
    try:
        answer = student.classifier.answer(await client.complete(student.classifier.request(text)))
    except QueryRefused:  # longer than the model's context: no label, and no reason to stop the others
        return {"label": UNKNOWN, "confidence": 0.0, "abstained": True, "reasoning": None}
    except EngineError as error:
        raise EngineError(f"row {number}: {error}") from None
    return {name: getattr(answer, name) for name in COLUMNS}


async def classify(student: Student, texts: Sequence[str], file: TextIO, timeout_s: float) -> list[dict[str, Any]]:
    """Answers in the order of the texts, kept in a file chunk by chunk. Raises EngineError with the row's number, from 1."""
    answers = answers_so_far(file)
    numbered = list(enumerate(texts, start=1))
    async with engine_client(student.api_base, student.key, timeout_s) as client:
        with tqdm(total=len(texts), initial=len(answers), unit="row") as progress:
            while len(answers) < len(texts):
                chunk = await asyncio.gather(*(ask(client, student, *row) for row in numbered[len(answers) : len(answers) + CHUNK]))
                file.write("".join(json.dumps(answer) + "\n" for answer in chunk))
                file.flush()
                answers += chunk
                progress.update(len(chunk))
    return answers


def check_target(to: Path) -> None:
    """Raise UserError where the output could not be written, before hours of work and not after."""
    if to.is_dir() or not os.access(to.parent, os.W_OK):
        raise UserError(f"{to} can't be written: name a file in a folder that is there and yours")


def batch(source: Path, to: Path, column: str) -> None:
    params = load_params()
    rows = read_texts(source, column)
    check_target(to)
    student = load_student(params)
    settings = [student.classifier.request(""), student.classifier.calibration.model_dump()]
    kept = cache() / "batch" / f"{row_id(json.dumps([list(rows[column]), settings]))}.jsonl"  # other rows or weights: another file
    with only_here(kept) as file, running(student.engine) if student.engine else nullcontext():
        # A whole chunk is in flight at once, so that one query may wait for all others of it.
        answers = asyncio.run(classify(student, list(rows[column]), file, params.serve.timeout_s * CHUNK))
        found = pd.DataFrame(answers, columns=COLUMNS, index=rows.index)
        if found["reasoning"].isna().all():
            found = found.drop(columns="reasoning")
        with whole_file(to) as draft:
            pd.concat([rows, found], axis=1).to_csv(draft, index=False)
        kept.unlink()
    print(f"{len(rows)} rows in {to}, {sum(answer['abstained'] for answer in answers)} of them abstained")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.batch", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="in.csv", help="a CSV file with a header")
    parser.add_argument("to", type=Path, metavar="out.csv", help="written whole at the end, or not at all")
    parser.add_argument("--text-column", default="text", help="the column that holds the queries (default: text)")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    end_on_sigterm()
    try:
        batch(given.source, given.to, given.text_column)
    except UserError as error:
        sys.exit(f"serve.batch: {error}")
    except EngineError as error:
        sys.exit(f"serve.batch: {error}; what was answered is kept: run it again to go on")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
