"""data/review/decisions.csv: what people edit by hand, and what outlives a killed process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from stages.parts.data.decisions import Decision, add_decisions, read_decisions, take_back
from stages.parts.run.errors import UserError
from tests.conftest import ROOT

LABELS = ["refund", "refund_not_showing_up"]  # one begins the other: half a line would be another decision
ADDER = """
import sys
from pathlib import Path
from stages.parts.data.decisions import Decision, add_decisions
for number in range(int(sys.argv[2])):
    add_decisions(Path("review/decisions.csv"), [Decision(f"{sys.argv[1]}{number}", "refund_not_showing_up", "", "")])
    print(number, flush=True)
"""


def adder(folder, name: str, count: int) -> subprocess.Popen:
    line = [sys.executable, "-c", ADDER, name, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_decision_and_loses_none(tmp_path):
    path = tmp_path / "review/decisions.csv"
    for kill in range(3):
        with adder(tmp_path, f"{kill}-", 100_000) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(0.1 + kill / 20)
            process.send_signal(signal.SIGKILL)
            done = 1 + len(process.stdout.read().splitlines())
        found = read_decisions(path, LABELS)
        assert {decision.label for decision in found.values()} == {"refund_not_showing_up"}
        assert sum(row.startswith(f"{kill}-") for row in found) in (done, done + 1)
        assert path.read_text().endswith(",refund_not_showing_up,,\n")


@pytest.mark.slow
def test_two_processes_that_add_lose_no_decision(tmp_path):
    processes = [adder(tmp_path, name, 50) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert len(read_decisions(tmp_path / "review/decisions.csv", LABELS)) == 100


def test_a_decision_that_can_not_be_written_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        add_decisions(tmp_path / "file/decisions.csv", [Decision("x", "refund", "", "")])
    path = tmp_path / "decisions.csv"
    add_decisions(path, [Decision("x", "refund", "a\rb", "")])
    before = path.read_bytes()
    code = (
        "import resource; from pathlib import Path\n"
        "from stages.parts.data.decisions import Decision, add_decisions\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "from stages.parts.run.commands import command\n"
        "with command('x'): add_decisions(Path('decisions.csv'), [Decision('y', 'refund_not_showing_up', '', '')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "can't be written (File too large)" in done.stderr, done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('id,label,was\na,refund,"open\nb,refund,x\nc,refund,y\n', "row 1: is not CSV (unexpected end of data)"),
        (
            'id,label,was\na,refund,"open\nb,refund,x"\nc,refund,y\n',
            "row 1: it goes over several lines: a quote is open",
        ),
        ("id,label\na,refund,x\n", "row 1: it has more than 2 fields: quote what holds a comma"),
        ("id;label\na;refund\n", "has semicolons or tabs between its columns"),
        ("id,label\na,refund\rb,refund\n", "row 1: has a carriage return outside quotes"),
        ("id,label,label\na,refund,x\n", "has a column twice in its header"),
        ("id,label\na,ref", "row 1: 'ref' is none of this run's 2 labels: mend it, or remove the row"),
    ],
)
def test_an_edit_that_would_lose_rows_is_one_clear_line(tmp_path, content, says):
    path = tmp_path / "decisions.csv"
    path.write_bytes(content.encode())
    with pytest.raises(UserError) as caught:
        read_decisions(path, LABELS)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_the_users_own_columns_may_hold_anything(tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_bytes('id,text,label\r\na,"two\r\nlines, a ""quote""\u2028",refund\r\n\r\n'.encode())
    decision = Decision("b", "refund", "x", "")
    add_decisions(path, [decision])
    before = path.read_bytes()
    assert [*read_decisions(path, LABELS)] == ["a", "b"]
    take_back(path, decision)
    assert [*read_decisions(path, LABELS)] == ["a"]
    with pytest.raises(UserError, match="has changed meanwhile"):
        take_back(path, decision)
    add_decisions(path, [decision])
    assert path.read_bytes() == before
