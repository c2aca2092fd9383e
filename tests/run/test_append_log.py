import os

import pytest

from stages.parts.run.append_log import append_log
from stages.parts.run.errors import UserError

FIRST, SECOND = "0" * 32, "f" * 32


def test_the_last_record_of_a_key_counts_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "log" / "answers.jsonl"
    with append_log(path, "busy") as log:
        log.put(FIRST, {"says": "1\u2028"})
        log.put(SECOND, {"says": "2"})
        log.put(FIRST, {"says": "3"})
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with append_log(path, "busy") as log:
            lines = whole[:cut].count(b"\n")
            assert (log.get(FIRST) or {}).get("says") == [None, "1\u2028", "1\u2028", "3"][lines]
            assert (log.get(SECOND) is None) == (lines < 2)
            log.put(SECOND, {"says": "again"})
        with append_log(path, "busy") as log:
            assert log.get(SECOND) == {"key": SECOND, "says": "again"}


def test_a_damaged_line_and_another_key_with_the_same_start_are_no_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    with append_log(path, "busy") as log:
        log.put(FIRST, {"says": "1"})
        assert log.get(FIRST[:16] + "1" * 16) is None
    path.write_bytes(path.read_bytes().replace(b'"says"', b'"says'))
    with append_log(path, "busy") as log:
        assert log.get(FIRST) is None


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(handle, data[:20])

    with append_log(path, "busy") as log:
        log.put(FIRST, {"says": "1"})
        before = path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, "write", full)
            log.put(SECOND, {"says": "a long answer"})
        assert path.read_bytes() == before
        log.put(SECOND, {"says": "2"})
        assert log.get(FIRST) and log.get(SECOND)


def test_a_second_writer_is_refused(tmp_path):
    with (
        append_log(tmp_path / "answers.jsonl", "busy"),
        pytest.raises(UserError, match="busy"),
        append_log(tmp_path / "answers.jsonl", "busy"),
    ):
        pass


def test_records_are_found_while_others_are_written(tmp_path):
    """Reads that go on beyond a buffer, between writes: a buffered reader lost some of them, which were then paid
    again.
    """
    keys = [f"{number:016x}" + "0" * 16 for number in range(1, 200)]
    with append_log(tmp_path / "answers.jsonl", "busy") as log:
        for key in keys[:100]:
            log.put(key, {"says": key * 90})
    with append_log(tmp_path / "answers.jsonl", "busy") as log:
        for old, new in zip(keys[:99], keys[100:], strict=True):
            assert log.get(old) == {"key": old, "says": old * 90}
            log.put(new, {"says": new})
