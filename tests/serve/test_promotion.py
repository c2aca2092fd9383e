"""Promoting a student and going back, through the real commands, beside a running service."""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests

from stages.parts.numbers.choice import ServedChoice
from stages.parts.run import paths
from stages.parts.run.files import write_json
from stages.parts.students.linear import WEIGHTS
from stages.parts.students.local import CALIBRATION, HELD_OUT, LocalClassifier, beside, load_local
from stages.parts.students.promoted import HISTORY
from tests.conftest import ROOT
from tests.serve.shop import Shop, make_shop, serving, student_calibration, until
from tests.serve.test_local import write_encoder
from tests.serve.test_traffic import write_shadow

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "stages.parts.students.promotion"]
CLIENTS = 8


@pytest.fixture
def shop(tmp_path) -> Shop:
    """A run that serves its encoder, and next/encoder, another one."""
    found = make_shop(tmp_path / "run", model="auto")
    write_encoder(tmp_path, found.folder / paths.ENCODER, 0)
    write_encoder(tmp_path, found.folder / "next/encoder", 1)
    write_json(found.folder / paths.SERVED, ServedChoice(serve="encoder", why="", profile="embedded").model_dump())
    return found


def promotion(shop: Shop, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=shop.folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def history(shop: Shop) -> list[str]:
    file = shop.folder / HISTORY
    return json.loads(file.read_text())["names"] if file.exists() else []


def classified(url: str, query: str) -> dict:
    response = requests.post(f"{url}/classify_intent", json={"query": query}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def test_no_request_fails_while_students_are_promoted_and_rolled_back(shop):
    students: dict[str, LocalClassifier] = {}
    for folder in (paths.ENCODER, Path("next/encoder")):
        local = load_local(shop.folder / folder)
        students[local.model] = local
    first, second = students
    answers: list[tuple[str, dict]] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def send(client: int, url: str) -> None:
        with requests.Session() as session:
            for number in range(10**6):
                if stop.is_set():
                    return
                query = f"card {client} {number % 50}"  # some from the cache
                try:
                    response = session.post(f"{url}/classify_intent", json={"query": query}, timeout=30)
                    response.raise_for_status()
                    answers.append((query, response.json()))
                except Exception as error:
                    errors.append(error)

    with serving(shop) as url:
        clients = [threading.Thread(target=send, args=(client, url)) for client in range(CLIENTS)]
        for each in clients:
            each.start()
        for wanted, words in 2 * [(second, ["promote", "next/encoder"]), (first, ["rollback"])]:
            done = promotion(shop, *words)
            assert done.returncode == 0 and f"{wanted} is the served one" in done.stdout, done.stderr
            until(lambda wanted=wanted: classified(url, "hello")["model"] == wanted)
            assert requests.get(f"{url}/v1/models", timeout=5).json()["data"][0]["id"] == wanted
        stop.set()
        for each in clients:
            each.join()
        assert "queries_in_flight 0.0" in requests.get(f"{url}/metrics", timeout=5).text
    assert errors == []
    models = Counter(answer["model"] for _, answer in answers)
    assert set(models) == set(students) and min(models.values()) > 20
    for query, answer in random.Random(0).sample(answers, 200):
        assert answer["label"] == students[answer["model"]].classify([query])[0].label
    assert promotion(shop, "rollback").stderr == "promotion: nothing is promoted, so there is nothing to go back from\n"


def truncate(folder: Path) -> None:
    graph = (folder / "encoder.onnx").read_bytes()
    (folder / "encoder.onnx").write_bytes(graph[: len(graph) // 2])


def claim_hash(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """A change of a student's files that its calibration knows of."""

    def changed(folder: Path) -> None:
        change(folder)
        write_json(beside(folder, CALIBRATION), student_calibration(folder))

    return changed


def not_a_number(folder: Path) -> None:
    shutil.rmtree(folder)
    write_shadow(folder)
    with np.load(folder / WEIGHTS) as arrays:
        np.savez(folder / WEIGHTS, **{**arrays, "bias": arrays["bias"] * np.nan})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "is of another student"),
        (claim_hash(truncate), "can't be loaded"),
        (lambda folder: shutil.rmtree(folder), "holds no student.json"),
        (lambda folder: beside(folder, CALIBRATION).unlink(), "encoder_calibration.json is missing"),
        (lambda folder: beside(folder, HELD_OUT).unlink(), "encoder_held_out.jsonl is missing"),
    ],
)
def test_a_broken_folder_is_refused_in_a_line_and_changes_nothing(shop, change, message):
    folder = shop.folder / "next/encoder"
    change(folder)
    done = promotion(shop, "promote", "next/encoder")
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert history(shop) == []
    assert [path.name for path in (shop.folder / paths.PROMOTED).iterdir()] in ([".lock"], [])


def test_probabilities_that_are_not_numbers_and_other_labels_are_refused(shop, tmp_path):
    linear = shop.folder / "next/linear"
    write_shadow(linear)
    done = promotion(shop, "promote", "next/linear")
    assert done.returncode == 1 and "has other labels than the served student (new what's_this)" in done.stderr
    assert promotion(shop, "promote", "next/linear", "--other-labels").returncode == 0
    assert len(history(shop)) == 1
    claim_hash(not_a_number)(linear)
    done = promotion(shop, "promote", "next/linear")
    assert "has a confidence of nan" in done.stderr and len(history(shop)) == 1


def test_a_kill_leaves_one_or_the_other_and_the_next_promotion_works(shop):
    draw = random.Random(0)
    started = time.monotonic()
    assert promotion(shop, "promote", "next/encoder").returncode == 0
    took = time.monotonic() - started
    promotion(shop, "rollback")
    for number in range(12):
        words = ["promote", "next/encoder"] if not history(shop) else ["rollback"]
        if number % 2:
            shutil.rmtree(shop.folder / paths.PROMOTED, ignore_errors=True)
            words = ["promote", "next/encoder"]
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=shop.folder, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
        )
        time.sleep(took * draw.uniform(0.5, 1.05))
        process.kill()
        process.wait()
        names = history(shop)
        assert len(names) <= 1
        for name in names:
            load_local(shop.folder / paths.PROMOTED / name)
    assert promotion(shop, "promote", "next/encoder").returncode == 0
    (name,) = history(shop)
    found = {path.name for path in (shop.folder / paths.PROMOTED).iterdir()}
    assert found == {name, ".lock", HISTORY.name}, "what the kills left is gone"


def test_a_service_keeps_its_student_if_the_promoted_one_breaks_and_starts_with_it_if_it_does_not(shop, tmp_path):
    assert promotion(shop, "promote", "next/encoder").returncode == 0
    promoted = load_local(shop.folder / "next/encoder").model
    with serving(shop) as url:
        assert classified(url, "hello")["model"] == promoted
        truncate(shop.folder / paths.ENCODER)
        done = promotion(shop, "rollback")
        assert done.returncode == 1 and "is of another student" in done.stderr and len(history(shop)) == 1
        write_json(shop.folder / HISTORY, {"names": ["gone"]})
        until(lambda: "models/promoted/gone holds no student.json" in (shop.folder / "log").read_text())
        assert classified(url, "hello again")["model"] == promoted
        time.sleep(2.5)
        assert (shop.folder / "log").read_text().count("models/promoted/gone") == 1, "not once a second"


def test_serve_model_and_a_named_folder_win_over_what_is_promoted(shop):
    assert promotion(shop, "promote", "next/encoder").returncode == 0
    own = load_local(shop.folder / paths.ENCODER).model
    for arguments in (["--model", "encoder"], ["--student", "models/encoder"]):
        with serving(shop, arguments) as url:
            time.sleep(1.5)
            assert classified(url, "hello")["model"] == own
