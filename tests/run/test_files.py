import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages.parts.data.rows import row_id
from stages.parts.run.errors import UserError
from stages.parts.run.files import (
    folder_sha256,
    iter_csv,
    read_json,
    read_jsonl,
    whole_file,
    whole_folder,
    write_csv,
    write_json,
    write_jsonl,
)
from tests.conftest import ROOT


def test_jsonl_keeps_every_text_as_it_is(tmp_path):
    rows = [{"id": row_id(text), "text": text} for text in ("a\u2028b\x85c", "line\nbreak", '"quoted" \\', "💳", "")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "numbers.json"
    file.write_text("[1]")
    for error in (OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()):
        with pytest.raises((UserError, KeyboardInterrupt)), whole_file(file) as draft:
            draft.write_text("[1, ")
            raise error
        assert file.read_text() == "[1]"
        assert list(tmp_path.iterdir()) == [file]


def test_a_killed_writers_draft_is_taken_over_by_its_token(tmp_path):
    killed = whole_file(tmp_path / "file", "token")
    killed.__enter__().write_text("a longer draft")
    with whole_file(tmp_path / "file", "token") as draft:
        draft.write_text("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "whole")]


def test_what_is_not_a_file_is_never_replaced(tmp_path):
    fifo, folder, circle = tmp_path / "fifo", tmp_path / "folder", tmp_path / "circle"
    os.mkfifo(fifo)
    folder.mkdir()
    circle.symlink_to(circle)
    for path in (fifo, folder, Path("/dev/null"), circle):
        with pytest.raises(UserError, match="can't be written"):
            write_json(path, 1)
    assert stat.S_ISFIFO(fifo.stat().st_mode) and folder.is_dir() and Path("/dev/null").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"fifo", "folder", "circle"}


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "kept").mkdir()
    target, link, dangling = tmp_path / "kept/numbers.json", tmp_path / "link", tmp_path / "dangling"
    target.write_text("1")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "kept/later.json")
    write_json(link, 2)
    write_json(dangling, 3)
    assert link.is_symlink() and target.read_text() == "2\n"
    assert dangling.is_symlink() and (tmp_path / "kept/later.json").read_text() == "3\n"
    target.chmod(0o444)  # as in DVC's cache, which `cache.type symlink` links into the workspace
    with pytest.raises(UserError, match="a link to a read-only file"):
        write_json(link, 4)
    assert target.read_text() == "2\n"


def test_umask_and_the_mode_of_a_file_hold(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "new", 1)
        write_json(tmp_path / "old", 1)
        (tmp_path / "old").chmod(0o604)
        write_json(tmp_path / "old", 2)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o640, 0o604]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("x" * 300, "File name too long): choose a shorter name"),
        ("é" * 128, "File name too long): choose a shorter name"),
        ("file/below", "can't be written"),
        ("file/below/it", "can't be written"),
    ],
)
def test_a_path_that_will_not_do_is_one_line_before_any_work(tmp_path, path, says):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, whole_file(tmp_path / path):
        pytest.fail("the work was begun")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_longest_name_is_written(tmp_path):
    write_json(tmp_path / ("x" * 255), 1)
    assert read_json(tmp_path / ("x" * 255)) == 1


def test_a_file_size_limit_is_one_line_and_nothing_is_half_written(tmp_path):
    line = "from stages.parts.run.files import write_json; from pathlib import Path\n"
    line += (
        "from stages.parts.run.commands import command\nwith command('x'): write_json(Path('out.json'), 'y' * 10**6)"
    )
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f 64; exec {sys.executable} -c "$CODE"'],
        cwd=tmp_path,
        env={**os.environ, "CODE": line, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "out.json can't be written (File too large): raise the limit" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "export"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/config.json").write_text("old")
    with pytest.raises(UserError, match=r"export can't be written \(No space left"), whole_folder(folder) as draft:
        draft.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (folder / "inner/config.json").read_text() == "old" and list(tmp_path.iterdir()) == [folder]


def test_a_foreign_file_in_an_output_folder_stops_the_write(tmp_path):
    folder = tmp_path / "export"
    with whole_folder(folder, own=("*.json",)) as draft:
        draft.mkdir()
        (draft / "a.json").write_text("1")
    with whole_folder(folder, own=("*.json",)) as draft:
        draft.mkdir()
        (draft / "b.json").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["b.json"] and list(tmp_path.iterdir()) == [folder]
    (folder / "thesis.tex").write_text("five years")
    with (
        pytest.raises(UserError, match=r"export holds thesis\.tex, which would be lost"),
        whole_folder(folder, ("*.json",)),
    ):
        pytest.fail("the work was begun")
    (tmp_path / "link").symlink_to(folder)
    with whole_folder(tmp_path / "link") as draft:
        draft.mkdir()
    assert (tmp_path / "link").is_symlink() and not list(folder.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"), whole_folder(tmp_path / "file"):
        pytest.fail("the work was begun")


def test_jsonl_keeps_half_a_surrogate_pair_that_a_model_wrote(tmp_path):
    rows = [{"reasoning": "\ud83d"}, {"reasoning": "é"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    assert '"é"' in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


AWKWARD = ["a\rb", "a\r\nb", "a\nb", '"', ",", "", " ", "\ufeff", "\u2028", "\x00", "é💳", "'", "-1", "\r", "\n"]


@pytest.mark.parametrize("columns", [1, 3])
def test_csv_comes_back_as_it_was_written(tmp_path, columns):
    rows = [[text] * columns for text in AWKWARD]
    write_csv(tmp_path / "rows.csv", [f"column {n}" for n in range(columns)], rows)
    assert list(iter_csv(tmp_path / "rows.csv"))[1:] == rows
    again = pd.read_csv(tmp_path / "rows.csv", dtype=str, keep_default_na=False, skip_blank_lines=False)
    assert again.to_numpy().tolist() == rows


def test_csv_has_empty_fields_for_none_and_nan_and_numbers_in_full(tmp_path):
    write_csv(tmp_path / "rows.csv", ["a", "b"], [[None, float("nan")], [0.1 + 0.2, True]])
    assert (tmp_path / "rows.csv").read_bytes() == b"a,b\n,\n0.30000000000000004,True\n"


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
