"""Served queries and other services' logs as rows of the next run."""

import csv
import json

import pytest

from stages.parts.run.errors import UserError
from stages.parts.traffic.rows import add_served, logged_rows, stored_rows
from stages.parts.traffic.store import ServedRow, TrafficStore

COLUMNS = ("text", "category")


def served(folder) -> dict[str, str]:
    with (folder / "served.csv").open(encoding="utf-8", newline="") as file:
        return {row["text"]: row["category"] for row in csv.DictReader(file)}


def write_log(path, entries):
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def completion(query: object, answer: object) -> dict:
    return {
        "request": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": query}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": answer}}]},
    }


def test_stored_queries_are_exported_with_the_teachers_labels(tmp_path):
    with TrafficStore(tmp_path / "served.sqlite", keep_days=1, keep_rows=100) as store:
        for text, label in (('a, "b"', "fee"), ("line\rbreak", None), ('a, "b"', None)):
            store.add(ServedRow(text, "refund", 0.9, None, "student", "epoch-1", teacher_label=label))
        assert add_served(tmp_path, stored_rows(store), *COLUMNS) == (2, 1)
        assert add_served(tmp_path, [("new", "")], *COLUMNS) == (3, 1)  # what was there stays
    assert served(tmp_path) == {'a, "b"': "fee", "line\rbreak": "", "new": ""}


def test_a_log_of_chat_completions_is_taken_over(tmp_path):
    parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]
    flat = {"messages": [{"role": "user", "content": "flat"}], "choices": [{"message": {"content": "refund"}}]}
    log = write_log(tmp_path / "log.jsonl", [completion("hello", "fee"), "", completion(parts, "refund"), flat])
    assert list(logged_rows(log)) == [("hello", "fee"), ("two\nparts", "refund"), ("flat", "refund")]


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"request": {}}', json.dumps(completion("a", None))])
def test_a_line_of_another_form_is_named(tmp_path, line):
    log = write_log(tmp_path / "log.jsonl", [completion("hello", "fee"), line])
    with pytest.raises(UserError, match="line 2 holds no request"):
        list(logged_rows(log))
