"""Folders and files as they come from Spark, pandas and people: what is found, what is refused and why."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.batch.parquet import AnsweredFile, find_files, open_file, printable, read_summary
from stages.parts.run.errors import UserError

ANSWER = {"label": "x", "confidence": 0.5, "abstained": None, "reasoning": None, "failure": None}


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"text": ["hello"]}), path)
    return path


def test_names_links_and_folders_of_other_programs_are_found(tmp_path):
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for name in ("a.parquet", "B.PARQUET", "c.parq", "d.pq", "spark.parquet/part-0.snappy.parquet", "day=1/e.parquet"):
        write(source / name)
    write(elsewhere / "f.parquet")
    (source / "link.parquet").symlink_to(elsewhere / "f.parquet")
    (source / "folder").symlink_to(elsewhere)
    (source / "day=1/loop").symlink_to(source)
    (source / "broken.parquet").symlink_to(tmp_path / "nowhere")
    (source / "to").symlink_to(tmp_path / "out")
    write(tmp_path / "out/a.parquet")
    for name in (".hidden.parquet", "_SUCCESS", "_temporary/g.parquet", "spark.parquet/.part-0.crc", "notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("")
    found, others = find_files(source, tmp_path / "out")
    assert found == [
        "B.PARQUET", "a.parquet", "broken.parquet", "c.parq", "d.pq", "day=1/e.parquet", "folder/f.parquet",
        "link.parquet", "spark.parquet/part-0.snappy.parquet",
    ]  # fmt: skip
    assert others == ["notes.txt"]


def odd_file(folder: Path, kind: str) -> Path:
    path = folder / "odd.parquet"
    if kind == "two columns":
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a broken link":
        path.symlink_to(folder / "nowhere")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(write(path).read_bytes()[:-20])
    elif kind == "numbers":
        write(path, text=[1, 2])
    elif kind == "another column":
        write(path, query=["a"])
    elif kind == "an answer's column":
        write(path, text=["a"], label=["b"])
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("two columns", "has 2 columns 'text'"),
        ("a pipe", "is a pipe or a device"),
        ("a folder", "is a folder"),
        ("a broken link", "does not exist"),
        ("empty", "is not Parquet"),
        ("cut", "is not Parquet"),
        ("numbers", "column 'text' holds int64, not strings"),
        ("another column", "has no column 'text'; it has query"),
        ("an answer's column", "has a column 'label' already"),
    ],
)
def test_a_file_that_can_not_be_classified_is_named_with_the_reason(tmp_path, kind, says):
    path = odd_file(tmp_path, kind)
    with pytest.raises(UserError) as refused, open_file(path, "text"):
        pass
    assert str(refused.value).startswith(str(path)) and says in str(refused.value)


def test_a_name_that_is_not_utf8_is_read_written_and_shown(tmp_path):
    name = os.fsdecode(b"caf\xe9.parquet")
    with open(os.fsencode(tmp_path / "plain"), "wb") as file:  # noqa: PTH123, Arrow writes UTF-8 names only
        pq.write_table(pa.table({"text": ["hello", None]}), file)
    (tmp_path / "plain").rename(tmp_path / name)
    assert find_files(tmp_path, tmp_path / "out") == ([name], [])
    to = tmp_path / f"out-{name}"
    with (
        open_file(tmp_path / name, "text") as file,
        to.open("wb") as output,
        AnsweredFile(tmp_path / name, file, "text", output, with_reasons=False) as answered,
    ):
        assert list(answered.texts()) == ["hello", None]
        answered.add(ANSWER)
        answered.add(ANSWER)
        answered.put_summary({"rows": 2})
    assert read_summary(to) == {"rows": 2}
    assert printable(name) == "caf\\xe9.parquet"


def test_two_other_columns_of_one_name_are_kept(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array(["hello"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "n", "n"]), path)
    with (
        open_file(path, "text") as file,
        (tmp_path / "out.parquet").open("wb") as output,
        AnsweredFile(path, file, "text", output, with_reasons=False) as answered,
    ):
        assert list(answered.texts()) == ["hello"]
        answered.add(ANSWER)
    assert pq.read_schema(tmp_path / "out.parquet").names[:4] == ["text", "n", "n", "label"]
