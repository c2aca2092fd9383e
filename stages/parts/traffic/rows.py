"""Served queries as rows for the next run: FOLDER/served.csv, which a folder's pool begins with (data/folder.py)."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.parts.data.folder import SERVED
from stages.parts.data.tables import MAX_TEXT, Faults, has_surrogate, records
from stages.parts.run.errors import UserError
from stages.parts.run.files import open_text, write_csv
from stages.parts.task.text import readable
from stages.parts.traffic.store import TrafficStore

LabelledText = tuple[str, str]  # the label is empty if the teacher gave none


def stored_rows(store: TrafficStore) -> Iterator[LabelledText]:
    """Yield each served query with the teacher's label, if the teacher was queried."""
    return ((row.text, row.teacher_label or "") for row in store.rows())


def logged_rows(log: Path) -> Iterator[LabelledText]:
    """Yield query and answer of a log of OpenAI-style chat completions; raises UserError for another form.

    A line holds `request` and `response`, or the two bodies' keys side by side. The query is the last user message. The
    answer is its content, cleaned when it is read; one that is no label is a text without a label.
    """
    try:
        with open_text(log) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    request, response = entry.get("request", entry), entry.get("response", entry)
                    query = [text_of(turn) for turn in request["messages"] if turn["role"] == "user"][-1]
                    answer = text_of(response["choices"][0]["message"])
                except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                    raise UserError(
                        f"{log}, line {number} holds no request with messages and response with choices: write one "
                        'JSON object a line, {"request": ..., "response": ...}'
                    ) from None
                yield query, answer
    except FileNotFoundError:
        raise UserError(f"{log} does not exist: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{log} is not UTF-8: save it as UTF-8") from None


def text_of(message: dict[str, Any]) -> str:
    """Return a message's text: a string, the text parts of a list, or nothing (null, with a call of a tool)."""
    content = message["content"] or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


def add_served(folder: Path, rows: Iterable[LabelledText], text_column: str, label_column: str) -> tuple[int, int]:
    """Add rows to the folder's served.csv, each text once: a label replaces none. Return its rows, and those labelled.
    Texts that stage raw would refuse are left out.

    Raises UserError if the folder does not exist, or its served.csv has other columns.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: make one with `make new-data FOLDER={folder}`")
    file = folder / f"{SERVED}.csv"
    labels: dict[str, str] = {}
    if file.exists():
        faults = Faults(file)
        for _, row in records(file, faults):
            if set(row) != {text_column, label_column}:
                raise UserError(f"{file} needs the columns {text_column} and {label_column} alone: mend it, or move it")
            labels[row[text_column]] = row[label_column] or labels.get(row[text_column], "")
        faults.stop()
    for text, label in rows:
        if readable(text) and len(text) <= MAX_TEXT and not has_surrogate(text):
            labels[text] = label or labels.get(text, "")
    write_csv(file, [text_column, label_column], labels.items())
    return len(labels), sum(map(bool, labels.values()))
