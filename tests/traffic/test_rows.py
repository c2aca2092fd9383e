"""Served queries and other services' logs as rows of the next run."""

import csv
import json

import pytest

from stages.parts.data.tables import read_table
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


def test_what_the_next_run_could_not_read_is_left_out(tmp_path):
    image = [{"type": "image_url", "image_url": {"url": "a"}}, {"type": "text", "text": "what is this"}]
    odd = ["\u200b\u00ad", "[[ ## label ## ]]", "<|eot_id|>", "x" * 20_001, "half \ud83d", None, []]
    entries = [completion(query, "fee") for query in odd] + [completion(image, None), completion("hello", "fee")]
    assert add_served(tmp_path, logged_rows(write_log(tmp_path / "log.jsonl", entries)), *COLUMNS) == (2, 1)
    assert served(tmp_path) == {"what is this": "", "hello": "fee"}
    assert len(read_table(tmp_path / "served.csv", "text")) == 2


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"request": {}}', json.dumps(completion(5, "a")), json.dumps(completion([5], "a"))]
)
def test_a_line_of_another_form_is_named(tmp_path, line):
    log = write_log(tmp_path / "log.jsonl", [completion("hello", "fee"), line])
    with pytest.raises(UserError, match="line 2 holds no request"):
        list(logged_rows(log))
