"""A pipe or a device in the place of a file: whoever reads it says so at once, instead of waiting for ever."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.batch import csv_file, parquet
from stages.parts.data.decisions import Decision, add_decisions, read_decisions
from stages.parts.data.folder import read_labels
from stages.parts.data.tables import read_table
from stages.parts.numbers.calibration import StudentCalibration, load_calibration
from stages.parts.numbers.metrics import load_metrics
from stages.parts.review.label_studio import read_export
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, iter_jsonl, open_bytes, read_json, write_json
from stages.parts.run.params import load_params
from stages.parts.students.local import CALIBRATION, load_local
from stages.parts.task.student_file import write_student_file
from stages.parts.traffic.rows import logged_rows
from tests.serve.shop import student_calibration

READERS: dict[str, Callable[[Path], Any]] = {
    "in.csv": lambda path: list(csv_file.read_rows(path, "text")),
    "in.parquet": lambda path: parquet.open_file(path, "text").__enter__(),
    "done.parquet": parquet.read_summary,
    "pool.csv": lambda path: read_table(path, "text"),
    "pool.jsonl": lambda path: read_table(path, "text"),
    "pool.parquet": lambda path: read_table(path, "text"),
    "labels.csv": read_labels,
    "decisions.csv": lambda path: read_decisions(path, ["a", "b"]),
    "added.csv": lambda path: add_decisions(path, [Decision("1", "a", "", "")]),
    "export.json": read_export,
    "program.json": file_sha256,
    "params.yaml": load_params,
    "log.jsonl": lambda path: list(logged_rows(path)),
    "rows.jsonl": lambda path: list(iter_jsonl(path)),
    "metrics.json": load_metrics,
    "encoder_calibration.json": lambda path: load_calibration(path, StudentCalibration),
    "any.json": read_json,
}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """No test waits longer than two seconds."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits for a writer")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder"])
def test_what_is_no_file_is_one_line(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError) as refused:
        READERS[name](path)
    says = "is a folder" if kind == "folder" else "is a pipe or a device"
    assert says in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_a_socket_is_one_line_too(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "in.csv"))
        with pytest.raises(UserError, match=r"in\.csv can't be read"):
            open_bytes(tmp_path / "in.csv")


def test_a_pipe_among_a_students_files_is_another_student(tmp_path):
    (tmp_path / "terms.json").write_text("[[], []]")
    write_student_file(tmp_path, "linear", ["a", "b"])
    write_json(tmp_path / CALIBRATION, student_calibration(tmp_path))
    (tmp_path / "terms.json").unlink()
    os.mkfifo(tmp_path / "terms.json")
    with pytest.raises(UserError, match="is of another student"):
        load_local(tmp_path)


def test_lines_of_a_file_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "log.jsonl").write_bytes('"a\u2028b"\r\n\n"c"\n'.encode())
    assert list(iter_jsonl(tmp_path / "log.jsonl")) == ["a\u2028b", "c"]
