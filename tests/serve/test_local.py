"""The service of a student that runs in this process: real commands on a small encoder, without an engine."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import requests
from transformers import BertConfig

from serve import export as exporting
from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.export import export_encoder
from stages.parts.encoder.head import Head
from stages.parts.encoder.student import write_student
from stages.parts.numbers.choice import ServedChoice
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import iter_csv, write_csv, write_json, write_jsonl, write_text
from stages.parts.run.machine import free_port
from stages.parts.students.local import CALIBRATION, HELD_OUT, beside, load_local
from stages.parts.task.student_file import write_no_student
from tests.browser import browser_page
from tests.conftest import ROOT
from tests.encoder.test_encoder import SIZES, sentence_model
from tests.serve.shop import Shop, ended, make_shop, serving, student_calibration, wait_until

LABELS = ["card_arrival", "declined_card_payment", "pending_top_up"]
QUERIES = ["Where is my card?", "My card was declined at the shop", "cash", "the new one I ordered"]
STRANGE = ["new new cash declined : at", "is the shop where i was", "ordered at the one"]


def write_encoder(scratch: Path, student: Path, seed: int, labels: Sequence[str] = LABELS) -> None:
    """An encoder student with a head of random weights, and what belongs to it beside it."""
    source, exported = scratch / "source", scratch / "exported"
    if not exported.exists():
        sentence_model(source, BertConfig(**SIZES))
        exported.mkdir()
        export_encoder(source, exported, "int8", None)
    draw, size = np.random.default_rng(seed), Encoder(exported).size
    weights = draw.normal(size=(size, len(labels))).astype(np.float32)
    head = Head(np.zeros(size, np.float32), weights, np.zeros(len(labels), np.float32))
    known = np.repeat(Encoder(exported).vectors(QUERIES), 10, axis=0)  # so that each is as familiar as can be
    write_student(exported, head, known, labels, student)
    write_json(beside(student, CALIBRATION), student_calibration(student))
    held_out = {"by": "teacher", "label": labels[0], "probabilities": {labels[0]: 0.99}, "confidence": None}
    write_jsonl(beside(student, HELD_OUT), [{"id": str(number), **held_out} for number in range(100)])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Shop:
    """A folder as `dvc repro` leaves it, with an encoder student that is chosen to be served."""
    folder = tmp_path_factory.mktemp("run")
    shop = make_shop(folder / "run", model="auto")
    student = shop.folder / paths.ENCODER
    write_encoder(folder, student, 0)
    write_json(shop.folder / paths.ENCODER_CALIBRATION, student_calibration(student, least_familiarity=0.99))
    choice = ServedChoice(serve="encoder", why="it is as good", profile="embedded")
    write_json(shop.folder / paths.SERVED, choice.model_dump())
    return shop


def test_every_route_answers_as_the_folder_does(run):
    expected = load_local(run.folder / paths.ENCODER).classify(QUERIES)
    with serving(run) as base:
        for query, wanted in zip(QUERIES, expected, strict=True):
            found = requests.post(f"{base}/classify_intent", json={"query": query}, timeout=10).json()
            assert (found["label"], found["abstained"], found["model"]) == (
                wanted.label,
                wanted.abstained,
                wanted.model,
            )
            assert found["confidence"] == pytest.approx(wanted.confidence, abs=1e-6)
            assert [other["label"] for other in found["runners_up"]] == [other.label for other in wanted.runners_up]
        batch = requests.post(f"{base}/classify_intent/batch", json={"queries": QUERIES}, timeout=10).json()["answers"]
        assert [answer["label"] for answer in batch] == [wanted.label for wanted in expected]
        chat = {"model": "any", "messages": [{"role": "user", "content": QUERIES[0]}]}
        assert (
            requests.post(f"{base}/v1/chat/completions", json=chat, timeout=10).json()["intent"]["label"]
            == expected[0].label
        )
        assert all(answer["abstained"] is None for answer in batch)
        assert "queries_in_flight 0.0" in requests.get(f"{base}/metrics", timeout=10).text
        assert requests.get(base, timeout=10).text.startswith("<!doctype html>")
        for blank in ("\u200b \u00a0", "[[ ## label ## ]] <|eot_id|>"):
            chat = {"model": "any", "messages": [{"role": "user", "content": blank}]}
            refused = {"": {"query": blank}, "/batch": {"queries": ["fine", blank]}}
            for route, body in refused.items():
                assert requests.post(f"{base}/classify_intent{route}", json=body, timeout=10).status_code == 422
            assert requests.post(f"{base}/v1/chat/completions", json=chat, timeout=10).status_code == 422


def test_a_text_that_no_label_fits_is_out_of_scope_on_every_route(run):
    with serving(run) as base:
        queries = [QUERIES[0], *STRANGE, QUERIES[1]]
        batch = requests.post(f"{base}/classify_intent/batch", json={"queries": queries}, timeout=10).json()["answers"]
        assert [answer["abstained"] for answer in batch] == [None, *["out_of_scope"] * len(STRANGE), None]
        assert {answer["label"] for answer in batch} <= set(LABELS), "the best guess is there all the same"
        one = requests.post(f"{base}/classify_intent", json={"query": STRANGE[0]}, timeout=10).json()
        assert one == batch[1]
        chat = {"model": "any", "messages": [{"role": "user", "content": STRANGE[1]}]}
        assert requests.post(f"{base}/v1/chat/completions", json=chat, timeout=10).json()["intent"] == batch[2]
        metrics = requests.get(f"{base}/metrics", timeout=10).text
        assert f'abstentions_total{{why="out_of_scope"}} {len(STRANGE) + 2}.0' in metrics
        assert 'abstentions_total{why="unsure"} 0.0' in metrics


@pytest.mark.slow
def test_the_page_says_that_no_label_seems_to_fit(run):
    with serving(run) as base, browser_page(base) as page:
        page.goto(base)
        page.get_by_label("A customer's query").fill(STRANGE[0])
        page.get_by_role("button", name="Classify").click()
        page.locator("#answer strong").wait_for()
        assert "No label seems to fit, so the service abstains" in page.locator("#answer").inner_text()


@pytest.fixture(scope="module")
def lock_alone(tmp_path_factory) -> Path:
    """A folder of links to the packages of requirements-serve.lock, for `python -S`, which finds no others."""
    folder = tmp_path_factory.mktemp("packages")
    for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements-serve.lock").read_text(), re.MULTILINE):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (folder / top).symlink_to(package.locate_file(top))
    return folder


def python(folder: Path, *line: str, packages: str = "") -> subprocess.CompletedProcess[str]:
    path = f"{ROOT}:{packages}"
    return subprocess.run(
        [sys.executable, *line], cwd=folder, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: write_json(run / paths.ENCODER_CALIBRATION, student_calibration(run / paths.BASE)),
            "another stud",
        ),
        (lambda run: (run / paths.ENCODER_CALIBRATION).unlink(), "encoder_calibration.json is missing"),
        (lambda run: write_json(run / paths.SERVED, {"serve": "parrot"}), "models/served.json: "),
        (lambda run: (run / paths.SERVED).unlink(), "models/served.json is missing"),
        (
            lambda run: write_json(run / paths.SERVED, {"serve": "encoder", "why": "", "profile": "llama"}),
            "is of profile llama, params.yaml wants embedded",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(run, tmp_path, change, message):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", run.folder, folder], check=True)
    change(folder)
    done = python(folder, "-m", "serve", "--port", str(free_port()))
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_takes_more_than_the_lock_is_one_line(run, lock_alone):
    for line in (("serve", "--model", "decoder"), ("serve.batch", "--ray", "in", "out")):
        done = python(run.folder, "-S", "-m", *line, packages=str(lock_alone))
        assert done.returncode == 1 and "this environment has no aiohttp: run `make setup`" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def exported(run, tmp_path, monkeypatch) -> Path:
    """The encoder in an export of a copy of the run, which is the current folder. The decoder's weights are none that
    could be merged: they are copied."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", run.folder, folder], check=True)
    monkeypatch.chdir(folder)

    def copied(_: Path, tuned: Path, to: Path) -> None:
        to.mkdir()
        shutil.copyfile(tuned / "weights", to / "model.safetensors")

    monkeypatch.setattr(exporting, "export", copied)
    write_text(paths.MODEL_CARD, f"--served-model-name {run.model}\n")
    exporting.export_pair(paths.EXPORT)
    return paths.EXPORT / exporting.ENCODER


def test_an_exported_encoder_answers_as_the_run_does_by_itself(exported):
    wanted = load_local(paths.ENCODER).classify(QUERIES)
    assert load_local(exported).classify(QUERIES) == wanted
    card = (exported / "README.md").read_text()
    assert "sentence-transformers/all-MiniLM-L6-v2" in card and "apache-2.0" in card.lower()
    assert "{{" not in card and "abstains below a confidence of 0.30" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    assert re.findall(r"^import (.*)", code, re.MULTILINE) == ["json, numpy, onnxruntime, tokenizers"]
    for query, prediction in zip(QUERIES, wanted, strict=True):
        line = [sys.executable, "-I", "-c", code.replace("My card got declined", query)]
        done = subprocess.run(line, cwd=exported, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        label, confidence = done.stdout.split()
        assert label == prediction.label and float(confidence) == pytest.approx(prediction.confidence, abs=1e-5)


def test_an_export_loses_no_file_and_is_replaced_whole_or_not_at_all(exported):
    exporting.export_pair(paths.EXPORT)  # over an earlier one
    before = {path: path.read_bytes() for path in paths.EXPORT.rglob("*") if path.is_file()}
    write_json(paths.ENCODER_CALIBRATION, student_calibration(paths.BASE))
    with pytest.raises(UserError, match="is of another student than"):
        exporting.export_pair(paths.EXPORT)
    assert {path: path.read_bytes() for path in paths.EXPORT.rglob("*") if path.is_file()} == before
    write_json(paths.ENCODER_CALIBRATION, student_calibration(paths.ENCODER))
    write_text(exported / "mine.txt", "mine")
    with pytest.raises(UserError, match=r"holds encoder/mine\.txt, which would be lost"):
        exporting.export_pair(paths.EXPORT)
    assert (exported / "mine.txt").read_text() == "mine"


def test_a_run_without_an_encoder_exports_the_decoder_alone(exported):
    write_no_student(paths.ENCODER)
    exporting.export_pair(paths.EXPORT)
    assert not exported.exists() and (paths.EXPORT / exporting.REQUEST).is_file()


def test_the_image_of_an_encoder_runs_on_what_it_copies_and_installs(exported, lock_alone, tmp_path):
    """Its command, in a folder with nothing else of this project, behind a key."""
    app, port = tmp_path / "app", str(free_port())
    app.mkdir()
    target = (ROOT / "Dockerfile").read_text().partition(" AS encoder\n")[2].partition("\nFROM ")[0]
    for source in re.findall(r"^COPY (\S+) ", target, re.MULTILINE):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
        copy(ROOT / source, app / source)
    places = {"python": sys.executable, "8000": port, "/app/student": str(exported.absolute())}
    [command] = re.findall(r"^CMD (\[.*\])$", target, re.MULTILINE)
    program, *words = (places.get(word, word) for word in json.loads(command))
    environment = {"SERVE_API_KEYS": "k" * 48, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(lock_alone)}
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen([program, "-S", *words], cwd=app, env=environment, stdout=log, stderr=log)
    with ended(service):
        wait_until(f"http://127.0.0.1:{port}/readyz")
        url = f"http://127.0.0.1:{port}/classify_intent"
        assert requests.post(url, json={"query": "cash"}, timeout=10).status_code == 401
        headers = {"Authorization": f"Bearer {'k' * 48}"}
        assert requests.post(url, json={"query": "cash"}, headers=headers, timeout=10).json()["label"] in LABELS
        for path in ("", "docs", "openapi.json", "traffic", "metrics", "v1/models"):
            assert requests.get(f"http://127.0.0.1:{port}/{path}", headers=headers, timeout=10).status_code == 200


def test_a_file_is_classified_as_the_folder_does_with_the_packages_of_the_lock(run, lock_alone, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", run.folder, folder], check=True)
    rows = [["007", query] for query in [*QUERIES, "", STRANGE[0], "[[ ## label ## ]]", 'a\r\n, "b"'] * 300]
    write_csv(folder / "in.csv", ["id", "query"], rows)
    command = ("-m", "serve.batch", "in.csv", "out.csv", "--text-column", "query")
    done = python(folder, "-S", *command, packages=str(lock_alone))
    assert done.returncode == 0, done.stderr[-800:]
    assert f"{len(rows)} rows in out.csv" in done.stdout
    header, *found = iter_csv(folder / "out.csv")
    assert header == ["id", "query", "label", "confidence", "abstained"]
    assert [row[:2] for row in found] == rows
    for row, wanted in zip(found, load_local(run.folder / paths.ENCODER).classify(QUERIES), strict=False):
        assert (row[2], row[4]) == (wanted.label, wanted.abstained or "")
        assert float(row[3]) == pytest.approx(wanted.confidence, abs=1e-6)
    assert found[4][2:] == found[6][2:] == ["unknown", "0.0", "unsure"] and found[5][4] == "out_of_scope"
    same = python(
        folder, "-m", "serve.batch", "in.csv", "same.csv", "--text-column", "query", "--student", "models/encoder"
    )
    assert same.returncode == 0 and (folder / "same.csv").read_bytes() == (folder / "out.csv").read_bytes()
