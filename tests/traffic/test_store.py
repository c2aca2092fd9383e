"""Served rows on disk: none is lost by a kill, none is kept beyond its limits, deleted texts are gone from the file."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.parts.run.errors import UserError
from stages.parts.traffic.store import DAY_S, ServedRow, TrafficStore
from tests.conftest import ROOT

ADDER = """
import sys
from pathlib import Path
from stages.parts.traffic.store import ServedRow, TrafficStore
with TrafficStore(Path(sys.argv[1]), keep_days=1, keep_rows=10**6) as store:
    for number in range(10**6):
        store.add(ServedRow(str(number), "refund", 0.9, None, "student", "epoch-1"))
        print(number, flush=True)
"""


def row(text: str, **changes) -> ServedRow:
    return ServedRow(
        **{
            "text": text,
            "label": "refund",
            "confidence": 0.5,
            "abstained": "unsure",
            "answered_by": "student",
            "model": "epoch-1",
            **changes,
        }
    )


def opened(folder: Path, **limits) -> TrafficStore:
    return TrafficStore(folder / "served.sqlite", **{"keep_days": 30, "keep_rows": 1_000, **limits})


def test_a_row_comes_back_as_it_was_added(tmp_path):
    whole = row(
        "caf\u00e9 \U0001f4b3\n",
        answered_by="teacher",
        teacher_label="fee",
        teacher_confidence=0.7,
        dollars=1e-5,
        at=5e9,
    )
    with opened(tmp_path) as store:
        store.add(whole)
        assert list(store.rows()) == [whole]
        assert list(store.rows(since=5e9 + 1)) == []


def test_the_teachers_label_joins_its_row_later(tmp_path):
    with opened(tmp_path) as store:
        first, second = store.add(row("a")), store.add(row("b"))
        store.add_teacher(second, "fee", 0.9, 0.002)
        store.purge(before=0)
        assert [(found.text, found.teacher_label, found.dollars) for found in store.rows()] == [
            ("a", None, None),
            ("b", "fee", 0.002),
        ]
        store.purge()
        store.add_teacher(first, "fee", 0.9, 0.002)
        assert len(store) == 0


def test_what_a_day_cost_is_known_after_a_restart(tmp_path):
    with opened(tmp_path) as store:
        assert store.spending("2026-11-28") == (0, 0.0)
        for day in ("2026-11-28", "2026-11-28", "2026-11-29"):
            store.add_spending(day, 0.25)
    with opened(tmp_path, keep_rows=0) as store:
        assert store.spending("2026-11-28") == (2, 0.5)


def test_a_kill_loses_no_row_that_was_added(tmp_path):
    file = tmp_path / "served.sqlite"
    least = 0
    for _ in range(3):
        adder = subprocess.Popen([sys.executable, "-c", ADDER, str(file)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert adder.stdout
        for _ in range(200):
            adder.stdout.readline()
        os.kill(adder.pid, signal.SIGKILL)
        least += 200 + len(adder.stdout.readlines())
        adder.wait()
        with TrafficStore(file, keep_days=1, keep_rows=10**6) as store:
            assert len(store) >= least
            least = len(store)


def test_rows_beyond_the_limits_are_deleted(tmp_path):
    now = time.time()
    with opened(tmp_path) as store:
        for days in (40, 20, 10, 1):
            store.add(row(f"{days} days ago", at=now - days * DAY_S))
    with opened(tmp_path, keep_rows=2) as store:
        assert [found.text for found in store.rows()] == ["10 days ago", "1 days ago"]
    with opened(tmp_path, keep_rows=0) as store:
        assert len(store) == 0


def test_what_watches_have_seen_is_kept_by_student_within_the_limits(tmp_path):
    with opened(tmp_path) as store:
        for number in range(6):
            store.add_observation("drift", "new" if number % 2 else "old", number > 1)
        store.add_observation("audit", "old", False)
        assert store.observations("drift", "old") == [False, True, True]
        assert store.observations("drift", "new") == [False, True, True] and store.observations("audit", "new") == []
        store.file.execute("UPDATE observed SET at = at - ? WHERE rowid = 1", [31 * DAY_S])
        assert store.observations("drift", "old") == [True, True]
        assert store.purge() == 0 and store.observations("audit", "old") == [False], "they hold no text"
    with opened(tmp_path, keep_rows=2) as store:
        assert (store.observations("drift", "old"), store.observations("drift", "new")) == ([], [True])


def test_a_purged_text_is_nowhere_on_the_disk(tmp_path):
    with opened(tmp_path) as store:
        store.add(row("my card number is 4929 0000", at=time.time() - 100))
        store.add(row("hello"))
        assert store.purge(before=time.time() - 50) == 1
        on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert b"4929" not in on_disk and b"hello" in on_disk
        assert store.purge() == 1 and len(store) == 0


def test_a_file_that_is_no_store_is_one_clear_line(tmp_path):
    (tmp_path / "served.sqlite").write_text("id,text\n" * 100)
    with pytest.raises(UserError, match=r"served.sqlite is damaged \(file is not a database\)"):
        opened(tmp_path)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE served (text)")
    with pytest.raises(UserError, match=r"other\.sqlite can't be read and written"):
        TrafficStore(tmp_path / "other.sqlite", keep_days=1, keep_rows=1)
