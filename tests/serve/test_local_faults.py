"""An in-process student under what befalls a service: overload, clients that hang up, SIGTERM, kill -9."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from stages.parts.numbers.choice import ServedChoice
from stages.parts.run import paths
from stages.parts.run.answer_store import answer_store
from stages.parts.run.files import iter_csv, write_csv, write_json
from stages.parts.run.machine import free_port
from stages.parts.students.local import load_local
from tests.conftest import ROOT
from tests.serve.shop import Shop, make_shop, serving, start, until, wait_until
from tests.serve.test_connections import BODIES, in_flight, post
from tests.serve.test_local import write_encoder

pytestmark = pytest.mark.slow
QUEUE = 12
SLOW = "tests.serve.slow_student"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    """A folder with an encoder that is served, and next/encoder, another one."""
    folder = tmp_path_factory.mktemp("faults")
    made = make_shop(folder / "run", model="auto", queue=QUEUE, cached_answers=0)
    write_encoder(folder, made.folder / paths.ENCODER, 0)
    write_encoder(folder, made.folder / "next/encoder", 1)
    write_json(made.folder / paths.SERVED, ServedChoice(serve="encoder", why="", profile="embedded").model_dump())
    return made


def status(url: str, query: str) -> int:
    return requests.post(f"{url}/classify_intent", json={"query": query}, timeout=30).status_code


def test_more_than_the_queue_holds_is_refused_at_once_and_the_rest_is_answered(shop):
    with serving(shop, module=SLOW, SLOW_S="0.2") as url, ThreadPoolExecutor(40) as clients:
        found = list(clients.map(lambda number: status(url, f"cash {number}"), range(40)))
        assert set(found) == {200, 429} and found.count(200) >= QUEUE
        never = requests.post(f"{url}/classify_intent/batch", json={"queries": ["x"] * (QUEUE + 1)}, timeout=5)
        assert never.status_code == 413 and f"{QUEUE} queries at most" in never.json()["detail"]
        assert in_flight(url) == 0 and status(url, "still there?") == 200


def test_a_client_that_hangs_up_frees_its_slots_and_its_queries_are_not_computed(shop):
    with serving(shop, module=SLOW, SLOW_S="2") as url:
        for path, body in BODIES.items():
            slots = len(body.get("queries", [1]))
            clients = [post(url, path.partition("?")[0], body) for _ in range(QUEUE // slots)]
            until(lambda: in_flight(url) == QUEUE, 10)
            assert status(url, "one more") == 429
            for client in clients[1:]:
                client.close()
            until(lambda held=slots: in_flight(url) == held, 1)
            clients[0].close()
            until(lambda: in_flight(url) == 0, 1)
        clients = [post(url, "classify_intent", {"query": f"cash {number}"}) for number in range(QUEUE)]
        until(lambda: in_flight(url) == QUEUE, 10)
        for client in clients:
            client.close()
        until(lambda: in_flight(url) == 0, 1)
        asked = time.monotonic()
        assert status(url, "my card") == 200
        cores = len(os.sched_getaffinity(0))
        if cores < QUEUE / 2:
            assert time.monotonic() - asked < 2 * 2 + 1, "a query or two that had begun, and this one"
    assert "Traceback" not in (shop.folder / "log").read_text()


def test_sigterm_answers_what_was_accepted(shop):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    service = start(shop, SLOW, "--port", str(port), SLOW_S="0.5")
    with ThreadPoolExecutor(8) as clients:
        wait_until(f"{url}/readyz")
        asked = [clients.submit(status, url, f"cash {number}") for number in range(8)]
        until(lambda: in_flight(url) == 8, 1)
        service.terminate()
        assert {future.result() for future in asked} == {200}
        assert service.wait(30) == 128 + signal.SIGTERM


BATCH = """
import os, signal
from serve.batch import in_process
from serve.batch.__main__ import main
from stages.parts.run import files
calls, answers_to = 0, in_process.answers_to
def counted(*given):
    global calls
    if str(calls) == os.environ.get("KILLED_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    return answers_to(*given)
in_process.answers_to, in_process.CHUNK = counted, 50
csv_line = files.csv_line
def killed_there(row):
    row = list(row)
    if os.environ.get("KILLED_WRITING", "nowhere") in row:
        print(calls, "chunks classified", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return csv_line(row)
files.csv_line = killed_there
main()
print(calls, "chunks classified")
"""


def batch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m serve.batch` of in.csv in chunks of 50 rows; says how many it classified."""
    return subprocess.run(
        [sys.executable, "-c", BATCH, "in.csv", *arguments], cwd=folder, env={"PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_killed_file_goes_on_where_it_was_and_another_student_starts_anew(shop):
    folder = shop.folder
    rows = [[f"cash {number} was declined", str(number)] for number in range(980)] + [["", "blank"]]
    write_csv(folder / "in.csv", ["text", "id"], rows)
    before = set(folder.iterdir()) | {folder / ".cache"}
    assert batch(folder, "out.csv", KILLED_AT="7").returncode == -signal.SIGKILL
    assert set(folder.iterdir()) == before, "neither an output nor a draft of one"
    [kept] = (folder / ".cache/batch").glob("*.sqlite")
    with answer_store(kept, "busy"):
        busy = batch(folder, "out.csv")
        assert busy.returncode == 1 and "another run is classifying the same rows" in busy.stderr
    other = batch(folder, "other.csv", "--student", "next/encoder")
    assert "20 chunks classified" in other.stdout, other.stderr
    writing = batch(folder, "out.csv", KILLED_WRITING="blank")
    assert writing.returncode == -signal.SIGKILL and "13 chunks classified" in writing.stdout, writing.stderr
    done = batch(folder, "out.csv")
    assert "981 rows in out.csv" in done.stdout and "0 chunks classified" in done.stdout, done.stderr
    assert set(folder.iterdir()) == before | {folder / "out.csv", folder / "other.csv"}, "no draft is left"
    assert not any((folder / ".cache/batch").iterdir())
    answered, others = (list(iter_csv(folder / name))[1:] for name in ("out.csv", "other.csv"))
    assert [row[:2] for row in answered] == rows and answered[-1][2] == "unknown"
    for found, student in ((answered, folder / paths.ENCODER), (others, folder / "next/encoder")):
        for row, wanted in zip(found, load_local(student).classify([text for text, _ in rows[:-1]]), strict=False):
            assert row[2] == wanted.label and float(row[3]) == pytest.approx(wanted.confidence, abs=1e-6)


def test_a_file_that_changes_while_it_is_classified_is_not_answered_with_other_rows_answers(shop):
    rows = [[f"cash {number}", str(number)] for number in range(100)]
    write_csv(shop.folder / "in.csv", ["text", "id"], rows)
    code = BATCH.replace("    calls += 1\n", '    calls += 1\n    open("in.csv", "a").write(f"more,{calls}\\n")\n')
    done = subprocess.run(
        [sys.executable, "-c", code, "in.csv", "changed.csv"], cwd=shop.folder, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "in.csv has changed while it was classified" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (shop.folder / "changed.csv").exists()
    assert not any((shop.folder / ".cache/batch").iterdir())
