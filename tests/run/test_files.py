import errno

import pytest

from stages.parts.data.rows import row_id
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256, read_json, read_jsonl, whole_file, write_jsonl


def test_jsonl_keeps_every_text_as_it_is(tmp_path):
    rows = [{"id": row_id(text), "text": text} for text in ("a\u2028b\x85c", "line\nbreak", '"quoted" \\', "💳", "")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "numbers.json"
    file.write_text("[1]")
    with pytest.raises(OSError, match="full"), whole_file(file) as draft:
        draft.write_text("[1, ")
        raise OSError(errno.ENOSPC, "disk full")
    assert file.read_text() == "[1]"
    assert list(tmp_path.iterdir()) == [file]


def test_missing_and_broken_files_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"missing: run `dvc repro`"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.jsonl").write_text('{"id": 1}\n{"id"')
    with pytest.raises(UserError, match="a line that is not JSON"):
        read_jsonl(tmp_path / "half.jsonl")
    (tmp_path / "bytes.json").write_bytes(b'"\xff"')
    with pytest.raises(UserError, match=r"bytes.json is not JSON \(.*0xff"):
        read_json(tmp_path / "bytes.json")


def test_a_folders_hash_follows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = folder_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = folder_sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, folder_sha256(tmp_path)}) == 3
