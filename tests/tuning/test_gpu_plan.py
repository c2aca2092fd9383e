"""`make plan` for models on GPUs: from the hub's lists and a stub nvidia-smi, without a download or a GPU."""

import json
import sys

import pytest

from stages.parts.engines.layout import Layout, ModelShape
from stages.parts.run.params import load_params
from stages.parts.tuning.gpu_plan import engine_starts, labelling_s, machine_for
from tests.conftest import run
from tests.gpus import H100, stub_nvidia_smi
from tests.preflight.fake_hub import COMMIT, Repository, fake_hub
from tests.teachers.sandbox import Sandbox

TEACHER, STUDENT = "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"
SHAPE = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128_256}
CONFIG = json.dumps(SHAPE | {"hidden_size": 8192, "model_type": "llama"})
HUB = {
    TEACHER: Repository({"config.json": CONFIG}, {"a.safetensors": 70 * 10**9, "b.safetensors": 71 * 10**9}),
    STUDENT: Repository({"config.json": CONFIG}, {"model.safetensors": 2_471_645_608}),
}


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    sandbox = Sandbox(tmp_path, pool=300)
    sandbox.params["profile"] = "llama"
    for role in ("teacher", "student"):
        sandbox.params["profiles"]["llama"][role]["weights"]["revision"] = COMMIT
    sandbox.set("split", dev=10, optimizer_val=10)
    return sandbox


def planned(sandbox: Sandbox, **environment: str) -> str:
    command = [sys.executable, "-m", "stages.parts.tuning.plan"]
    done = run(sandbox.folder, *command, check=False, **sandbox.environment | {"HF_HUB_OFFLINE": "0"} | environment)
    assert "Traceback" not in done.stderr
    return done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]  # behind the hub's bars


@pytest.mark.slow
def test_bytes_layout_starts_hours_and_dollars_without_a_download(sandbox, tmp_path):
    with fake_hub(HUB) as hub:
        on_gpus = planned(sandbox, HF_ENDPOINT=hub, **stub_nvidia_smi(tmp_path / "bin", *[H100] * 4))
        without = planned(sandbox, HF_ENDPOINT=hub, PATH="/usr/bin:/bin")
    lines = on_gpus.splitlines()
    assert lines[0] == f"teacher       {TEACHER}: 141.0 GB in GPU memory, 141.0 GB to download"
    assert lines[1].strip() == "4 x NVIDIA H100 80GB HBM3, 80 GiB: tensor parallel 4, pipeline parallel 1, copies 1"
    assert lines[2].startswith(f"student       {STUDENT}: 2.5 GB in GPU memory, 2.5 GB to download")
    assert "engine starts 7: teacher 1, optimize 4, evaluate 2" in lines
    assert "answers       330 of about 100 tokens: pool 300, test and gold 30" in lines
    assert lines[-2].startswith("time          about 3") and "downloads 24 min" in lines[-2]
    assert lines[-1].startswith("price         about $")
    assert "no GPU here; assumed: 4 x A100, 80 GiB: tensor parallel 4" in without
    assert not list((tmp_path / ".cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_an_unreachable_hub_a_gated_model_and_too_little_memory_are_one_line(sandbox, tmp_path):
    complaint = planned(sandbox, HF_ENDPOINT="http://127.0.0.1:1")
    assert complaint.startswith(f"plan: {TEACHER} could not be ")
    gated = HUB | {TEACHER: Repository(HUB[TEACHER].files, HUB[TEACHER].large, gated=True)}
    with fake_hub(gated) as hub:
        complaint = planned(sandbox, HF_ENDPOINT=hub)
        assert complaint.startswith(f"plan: {TEACHER} is gated: accept its licence")
    with fake_hub(HUB) as hub:
        complaint = planned(sandbox, HF_ENDPOINT=hub, **stub_nvidia_smi(tmp_path / "bin", H100))
        assert "does not fit on 1 GPU(s) of 80 GiB" in complaint


def test_labelling_takes_as_long_as_reading_the_weights_for_every_token():
    shape = ModelShape(weight_bytes=140 * 10**9, heads=64, kv_heads=8, layers=80)
    seconds = labelling_s(shape, Layout(4, 1, 1), 3.35e12, answers=5000, max_in_flight=32)
    assert seconds == pytest.approx(5000 * 100 * (35e9 / (0.6 * 3.35e12)) / 32)
    assert labelling_s(shape, Layout(4, 1, 2), 3.35e12, 5000, 32) == pytest.approx(seconds / 2), "two copies"


def test_engines_start_once_a_student_that_is_served_alone(sandbox, monkeypatch):
    monkeypatch.chdir(sandbox.folder)
    sandbox.set("runtime", weights="adapter")
    assert engine_starts(load_params()) == {"teacher": 1, "optimize": 1, "evaluate": 1}
    sandbox.set("train", method="full")
    sandbox.set("optimize", checkpoints=3)
    assert engine_starts(load_params()) == {"teacher": 1, "optimize": 4, "evaluate": 2}


def test_as_many_gpus_are_assumed_as_a_model_needs(sandbox, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(sandbox.folder)
    runtime = load_params().runtime
    for gigabytes, gpus in ((16, 1), (141, 4), (500, 8)):
        machine, layout = machine_for(ModelShape(gigabytes * 10**9, 64, 8, 80), runtime)
        assert machine.assumed and len(machine.memory) == gpus == layout.tensor * layout.pipeline
