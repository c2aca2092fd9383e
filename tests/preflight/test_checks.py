"""`make check-setup` on a stub nvidia-smi and a hub on loopback: what a profile lacks is named before it costs."""

import json
import re
import sys

import pytest
import yaml
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from stages.parts.preflight import checks
from stages.parts.preflight.checks import Preflight, require_setup
from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from tests.conftest import ROOT, run
from tests.gpus import A100, H100, stub_nvidia_smi
from tests.preflight.fake_hub import COMMIT, Repository, fake_hub

TEACHER, STUDENT = "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"
SHAPE = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128_256}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> dict[str, str]:
    """The files of a small tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    characters = Tokenizer(BPE({letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    characters.pre_tokenizer, characters.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=characters, chat_template=TEMPLATE).save_pretrained(folder)
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.fixture
def repositories(tokenizer) -> dict[str, Repository]:
    config = json.dumps(SHAPE | {"hidden_size": 8192, "model_type": "llama"})
    return {
        TEACHER: Repository({"config.json": config}, {"a.safetensors": 70 * 10**9, "b.safetensors": 71 * 10**9}),
        STUDENT: Repository(
            {"config.json": config, **tokenizer},
            {"model.safetensors": 2_471_645_608, "original/consolidated.00.pth": 2_471_645_608},
        ),
    }


@pytest.fixture
def check(tmp_path, repositories):
    """Run the command on a profile of params.yaml, with changes, on a stub's GPUs; returns exit status and lines."""

    def checked(profile: str, *gpus: str, changes: dict[str, object] | None = None, **environment: str):
        params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"profile": profile}
        for role in ("teacher", "student"):
            if "weights" in params["profiles"][profile][role]:
                params["profiles"][profile][role]["weights"]["revision"] = COMMIT
        for path, value in (changes or {}).items():
            *blocks, key = path.split(".")
            block = params
            for name in blocks:
                block = block[name]
            block[key] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        stub = stub_nvidia_smi(tmp_path / "bin", *gpus)
        with fake_hub(repositories) as address:
            done = run(
                tmp_path, sys.executable, "-m", "stages.parts.preflight.checks", check=False,
                PYTHONPATH=str(ROOT), HF_ENDPOINT=address, HF_HUB_OFFLINE="0", DVC_ROOT=str(tmp_path),
                **stub, **environment,
            )  # fmt: skip
        return done.returncode, dict(re.findall(r"^(?:ok|FAILED) +([^:]+): (.*)$", done.stdout, re.MULTILINE)), done

    return checked


def failed(done) -> set[str]:
    return set(re.findall(r"^FAILED +([^:]+):", done.stdout, re.MULTILINE))


@pytest.mark.slow
def test_the_embedded_profile_needs_room_alone(check):
    code, lines, done = check("embedded")
    assert code == 0 and set(lines) == {"packages", "disk"}, done.stdout


@pytest.mark.slow
def test_a_machine_for_llama_is_seen_through_and_torch_of_the_cpu_named(check):
    code, lines, done = check("llama", *[H100] * 4)
    assert lines["GPUs"].count("NVIDIA H100 80GB HBM3 (80 GiB)") == 4
    assert lines["teacher's weights"] == f"{TEACHER}: 141.0 GB to download"
    assert lines["student's weights"] == f"{STUDENT}: 2.5 GB to download", "its second copy is not downloaded"
    assert lines["teacher's layout"] == "tensor parallel 4, pipeline parallel 1, 1 copies"
    assert lines["chat template"] == "training and serving send the same tokens"
    assert "has no CUDA: rm -rf .venv && HARDWARE=gpu make setup" in lines["CUDA"]
    assert failed(done) <= {"CUDA", "disk"} and code == 1 and "of the checks failed" in done.stderr


@pytest.mark.slow
def test_no_gpu_a_gated_model_and_an_unknown_one_are_named_at_once(check, repositories):
    repositories[TEACHER].gated = True
    del repositories[STUDENT]
    code, lines, done = check("llama")
    assert code == 1 and {"GPUs", "teacher's weights", "student's weights"} <= failed(done)
    assert "nvidia-smi finds none" in lines["GPUs"]
    assert f"{TEACHER} is gated: accept its licence" in lines["teacher's weights"]
    assert f"the hub has no {STUDENT}" in lines["student's weights"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_gpus_that_will_not_do_are_named(check):
    small = "NVIDIA L4, 23034, 22500, 8.9, 580.65.06, Disabled"
    assert "does not fit on 1 GPU" in check("llama", small)[1]["teacher's layout"]
    old = "Tesla V100, 32768, 32000, 7.0, 580.65.06, Disabled"
    assert "compute capability 7.0" in check("llama", old)[1]["GPUs"]
    busy = H100.replace("81000", "20000")
    assert "GPU 1 has 20 of 80 GiB free" in check("llama", H100, busy)[1]["GPU memory"]
    eight_bits = {"profiles.llama.teacher.kv_cache_dtype": "fp8"}
    assert "set teacher.kv_cache_dtype to auto" in check("llama", *[A100] * 4, changes=eight_bits)[1]["GPUs"]


@pytest.mark.slow
def test_a_quantised_70b_needs_one_gpu_of_80_gb(check, repositories):
    repositories[TEACHER] = Repository(
        {"config.json": json.dumps(SHAPE | {"hidden_size": 8192, "quantization_config": {"quant_method": "awq"}})},
        {"model.safetensors": 39_770_000_000},
    )
    assert check("llama", H100)[1]["teacher's layout"] == "tensor parallel 1, pipeline parallel 1, 1 copies"
    twice = {"profiles.llama.teacher.quantization": "fp8"}
    assert "is quantised already (awq)" in check("llama", H100, changes=twice)[1]["teacher's layout"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TEMPLATE, "the same tokens"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ loop.last }}{% endfor %}", "the same tokens"),
        ("{% if 'one_label' in messages[-1].content %}<{% endif %}" + TEMPLATE, "choose another student"),
        ("{% for m in messages %}{{ m.content | reverse }}{% endfor %}", "choose another student"),
        (None, "no chat template"),
    ],
)
def test_a_student_whose_template_rewrites_prompts_is_refused(tmp_path, tokenizer, template, says):
    for name, text in tokenizer.items():
        (tmp_path / name).write_text(text)
    made = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    made.chat_template = template
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    made.save_pretrained(tmp_path)
    preflight = Preflight(load_params(ROOT / "params.yaml"), tmp_path)
    preflight.files["student"] = checks.ModelFiles(tmp_path, 1, 0)
    if says.startswith(("choose", "no")):
        with pytest.raises(UserError, match=says):
            preflight.chat_template()
    else:
        assert says in preflight.chat_template()


@pytest.mark.slow
def test_a_repository_without_a_tokenizer_or_a_configuration_is_no_traceback(check, repositories):
    repositories[STUDENT] = Repository({"config.json": json.dumps(SHAPE)}, {"model.safetensors": 10**9})
    repositories[TEACHER] = Repository({"readme": ""}, {"model.safetensors": 10**9})
    code, lines, done = check("llama", H100)
    assert "no tokenizer that transformers reads" in lines["chat template"] and code == 1
    assert "no config.json" in lines["teacher's layout"] and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_endpoint_that_refuses_the_key_is_named(check, repositories):
    """The hub on loopback has no /models route of an endpoint: nothing listens at the second address."""
    away = {"profiles.api.teacher.api_base": "http://127.0.0.1:9/v1"}
    assert "TEACHER_API_KEY" in check("api", H100)[1]["teacher's endpoint"]
    lines = check("api", H100, changes=away, TEACHER_API_KEY="key")[1]
    assert "127.0.0.1:9/v1 can't be reached" in lines["teacher's endpoint"]


def test_stage_raw_refuses_a_machine_without_a_gpu_for_a_profile_that_needs_one(monkeypatch):
    params = load_params(ROOT / "params.yaml")
    assert not params.needs_gpus
    on_gpus = params.model_copy(update={"profile": "llama"})
    assert on_gpus.needs_gpus
    failing = checks.Result("GPUs", "there is none", failed=True)
    monkeypatch.setattr(checks, "check_setup", lambda _: iter([checks.Result("disk", "fine"), failing]))
    require_setup(params)
    with pytest.raises(UserError, match=r"(?s)can't run profile llama:\n  GPUs: there is none\n`make check-setup`"):
        require_setup(on_gpus)
    monkeypatch.setenv(checks.SKIP, "1")
    require_setup(on_gpus)
