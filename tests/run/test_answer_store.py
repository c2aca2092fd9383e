import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.parts.run.answer_store import answer_store
from stages.parts.run.errors import UserError
from tests.conftest import ROOT

FIRST, SECOND = "0" * 32, "f" * 32
WRITER = """
import sys
from pathlib import Path
from stages.parts.run.answer_store import answer_store
with answer_store(Path(sys.argv[1]), "busy") as store:
    for number in range(int(sys.argv[2]), 10**9):
        store.put(f"{number:032x}", {"says": f"{number} " * 400})
        print(number, flush=True)
"""


def test_the_last_record_of_a_key_counts_and_each_is_used_first_once_an_opening(tmp_path):
    path = tmp_path / "a folder" / "answers.sqlite"
    for _ in range(2):
        with answer_store(path, "busy") as store:
            store.put(FIRST, {"says": "1\u2028\ud800"})
            store.put(SECOND, {"says": "2"})
            assert store.first_use(SECOND) and store.first_use(FIRST) and not store.first_use(SECOND)
            store.put(FIRST, {"says": "3"})
            assert not store.first_use(FIRST), "a new record is no new use"
            assert store.get(FIRST) == {"says": "3"} and store.get("a" * 32) is None
            assert [key for key, _ in store.records()] == [FIRST, SECOND]
    assert [file.name for file in path.parent.iterdir()] == ["answers.sqlite"]


@pytest.mark.slow
def test_first_uses_are_right_and_small_for_two_hundred_thousand_answers(tmp_path):
    keys = [f"{number * 7919 % 200_000:032x}" for number in range(200_000)]
    with answer_store(tmp_path / "answers.sqlite", "busy") as store:
        store.execute("BEGIN")
        for key in keys:
            store.put(key, {})
        store.execute("COMMIT")
        assert all(store.first_use(key) for key in keys[::2]) and not any(store.first_use(key) for key in keys[::4])
        assert all(store.first_use(key) for key in keys[1::2]) and len(store.used) < 26_000


@pytest.mark.slow
def test_kill_9_loses_no_record_and_a_second_process_is_refused(tmp_path, pytestconfig):
    path, written = tmp_path / "answers.sqlite", 0
    for kill in range(pytestconfig.getoption("kills")):
        line = [sys.executable, "-c", WRITER, str(path), str(written)]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            with pytest.raises(UserError, match="busy"), answer_store(path, "busy"):
                pass
            time.sleep(0.05 * (kill % 7))
            process.send_signal(signal.SIGKILL)
            written = int((process.stdout.read().split() or [written])[-1]) + 1
        with answer_store(path, "busy") as store:
            assert store.get(f"{written - 1:032x}") == {"says": f"{written - 1} " * 400}
            assert len(store.records()) - written in (0, 1), "one more may be written than was printed"


@pytest.mark.parametrize("limit", ["the disk", "a file's size"])
def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path, limit):
    path = tmp_path / "answers.sqlite"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with answer_store(path, "busy") as store:
        store.put(FIRST, {"says": "1"})
        (pages,) = store.execute("PRAGMA page_count").fetchone()
        (most,) = store.execute("PRAGMA max_page_count").fetchone()
        if limit == "the disk":
            store.execute(f"PRAGMA max_page_count = {pages}")
        else:
            size = path.with_name("answers.sqlite-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # the kernel's own refusal
        try:
            with pytest.raises(
                UserError, match=r"the disk is full \(while|answers.sqlite can't be .* and the disk"
            ) as found:
                store.put(SECOND, {"says": "2" * 10_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            store.execute(f"PRAGMA max_page_count = {most}")
        assert "\n" not in str(found.value)
        assert store.get(FIRST) == {"says": "1"} and store.get(SECOND) is None
        store.put(SECOND, {"says": "2"})
    with answer_store(path, "busy") as store:
        assert store.get(FIRST) and store.get(SECOND)


def test_a_file_that_is_no_good_is_one_line_and_stays_as_it_is(tmp_path):
    def complaint(path: Path) -> str:
        with pytest.raises(UserError) as found, answer_store(path, "busy") as store:
            for number in range(100):
                store.get(f"{number:032x}")
        assert "\n" not in str(found.value)
        return str(found.value)

    text, folder, torn = tmp_path / "text.sqlite", tmp_path / "folder.sqlite", tmp_path / "torn.sqlite"
    text.write_text("no database, but a file of more than a hundred bytes. " * 9)
    folder.mkdir()
    with answer_store(torn, "busy") as store:
        for number in range(100):
            store.put(f"{number:032x}", {"says": str(number) * 500})
    with torn.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 30_000)
    before = torn.read_bytes()
    assert "is damaged (file is not a database)" in complaint(text) and text.read_text().startswith("no database")
    assert "is damaged (database disk image is malformed)" in complaint(torn) and torn.read_bytes() == before
    assert "can't be read and written (unable to open database file)" in complaint(folder)
    assert "can't be read and written" in complaint(tmp_path / ("n" * 300) / "a.sqlite")
    assert "can't be read and written" in complaint(tmp_path / f"{'n' * 300}.sqlite")
    assert "can't be read and written (File exists)" in complaint(text / "a.sqlite")
    if os.geteuid():
        folder.chmod(0o500)
        assert "can't be read and written" in complaint(folder / "a.sqlite")


def test_a_damaged_record_is_no_answer(tmp_path):
    with answer_store(tmp_path / "answers.sqlite", "busy") as store:
        store.put(FIRST, {"says": "1"})
        store.execute("UPDATE answers SET record = '{\"says'")
        assert store.get(FIRST) is None


def test_a_log_of_json_lines_is_imported_once_with_what_it_says_was_paid(tmp_path):
    path, log = tmp_path / "answers.sqlite", tmp_path / "answers.jsonl"
    paid = {"dollars": 0.25, "paid_before": [{"usage": {}, "dollars": 0.125, "batch": False}]}
    lines = [{"key": FIRST, "dollars": 0.125}, {"key": SECOND, "dollars": 1.0}, {"key": FIRST, **paid}]
    damaged = ["", "[]", "{}", '{"key": 1}', '{"key": "xyz"}', '{"key": "0123', "\x00\x00"]
    log.write_text("\n".join([*map(json.dumps, lines), *damaged]))
    with answer_store(path, "busy") as store:
        assert store.get(FIRST) == paid and store.get(SECOND) == {"dollars": 1.0} and len(store.records()) == 2
        store.put(SECOND, {"dollars": 2.0})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl.imported", "answers.sqlite"]
    with answer_store(path, "busy") as store:
        assert store.get(SECOND) == {"dollars": 2.0}


def test_a_log_that_another_run_appends_to_is_not_imported(tmp_path):
    log = tmp_path / "answers.jsonl"
    log.write_text("")
    holder = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", holder, str(log)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(UserError, match="busy"), answer_store(tmp_path / "answers.sqlite", "busy"):
            pass
        process.communicate("")
    assert log.exists()


def test_a_removed_store_leaves_nothing(tmp_path):
    with answer_store(tmp_path / "answers.sqlite", "busy") as store:
        store.put(FIRST, {"says": "1"})
        store.remove()
    assert not list(tmp_path.iterdir())


def test_sqlite_lets_one_thread_open_a_store_and_another_use_it():
    assert sqlite3.threadsafety == 3
