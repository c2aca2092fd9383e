"""SGLang without a GPU: its own parser and request types, where it is installed; its grammar; and a stub of what
differs from vLLM.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import xgrammar
import yaml

from stages.parts.engines import process, sglang
from stages.parts.engines.engine import Launch
from stages.parts.engines.layout import Layout, ModelShape
from stages.parts.engines.process import ModelToServe, prepare
from stages.parts.engines.sglang import Sglang, one_of
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from stages.parts.run.machine import Gpu
from stages.parts.run.params import load_params
from stages.parts.task.program_file import token_fingerprint
from stages.parts.task.prompt import answer_form
from tests.conftest import ROOT
from tests.serve.shop import ENGINE_KEY, LABELS, Shop, ended, last_request, make_shop, run_stub, serving, start

IN_SGLANG = """
import argparse, json, sys
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.server_args import ServerArgs
lines, bodies = json.load(sys.stdin)
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
parsed = [vars(parser.parse_args(line)) for line in lines]
unknown = [sorted(set(body) - set(ChatCompletionRequest.model_fields)) for body in bodies]
sampling = [ChatCompletionRequest(**body).to_sampling_params([], {}) for body in bodies]
json.dump([parsed, unknown, sampling], sys.stdout, default=str)
"""


def launch(adapters: dict[str, Path], layout: Layout | None) -> Launch:
    return Launch(Path("models/base"), "base-abc", adapters, 8001, "the key", layout, 4096, kv_cache_gib=1)


@pytest.mark.skipif(not sglang.PYTHON.is_file(), reason=f"SGLang is not installed: {sglang.INSTALL}")
def test_sglang_takes_our_command_lines_and_requests(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    adapters = {"epoch-6-abc": tmp_path}
    launches = [launch({}, Layout(1, 1, 1)), launch(adapters, Layout(4, 2, 2))]
    lines = [[*Sglang().command(each)[3:], "--api-key", "the key"] for each in launches]
    messages = [{"role": "user", "content": "query"}, {"role": "assistant", "content": "[[ ## label ## ]]\n"}]
    forms = [answer_form(LABELS, "direct"), answer_form(LABELS, "chain_of_thought")]
    bodies = [
        {"model": "base-abc:epoch-6-abc", "messages": messages, **Sglang().answer_options(form)} for form in forms
    ]
    done = subprocess.run(
        [sglang.PYTHON, "-c", IN_SGLANG], input=json.dumps([lines, bodies]), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parsed, unknown, sampling = json.loads(done.stdout[done.stdout.index("[[{") :])
    for known, asked in zip(parsed, launches, strict=True):
        assert (known["host"], known["port"], known["api_key"], known["served_model_name"]) == (
            "127.0.0.1",
            8001,
            "the key",
            "base-abc",
        )
        assert (known["tp_size"], known["pp_size"], known["dp_size"]) == (
            asked.layout.tensor,
            asked.layout.pipeline,
            asked.layout.copies,
        )
        assert (known["context_length"], known["load_format"], known["sampling_defaults"]) == (
            4096,
            "safetensors",
            "openai",
        )
    assert (
        "epoch-6-abc" in str(parsed[1]["lora_paths"])
        and parsed[1]["max_loras_per_batch"] == 2
        and parsed[1]["enable_lora"]
    )
    assert unknown == [[], []]
    assert (sampling[0]["ebnf"], sampling[1]["regex"]) == (one_of(LABELS), forms[1].regex)


def test_the_grammar_takes_the_labels_and_nothing_else():
    labels = [*LABELS, "card", 'a"b\\c', "überweisung-1"]
    vocabulary = xgrammar.TokenizerInfo([*(bytes([byte]) for byte in range(256)), b"<eos>"], stop_token_ids=[256])
    grammar = xgrammar.GrammarCompiler(vocabulary).compile_grammar(one_of(labels))

    def takes(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(grammar)
        return matcher.accept_string(text) and matcher.accept_token(256)

    assert all(takes(label) for label in labels)
    assert not any(takes(wrong) for wrong in ("car", "card_arrival ", " card", "what's", "überweisung-"))


@pytest.mark.parametrize(("free", "share"), [(1.0, 0.85), (0.95, 0.895), (0.9, 0.944), (0.5, 0.944)])
def test_its_share_of_the_memory_is_of_the_whole_gpu(monkeypatch, free, share):
    """SGLang takes a share of what is free when it starts: on a GPU that other work holds in part, of less."""
    monkeypatch.setattr(sglang, "PYTHON", Path(sys.executable))
    line = Sglang().command(replace(launch({}, Layout(1, 1, 1)), memory_share=0.9, free_share=free))
    assert line[line.index("--mem-fraction-static") + 1] == f"{share:.3f}"


def test_no_key_on_the_command_line_and_one_clear_line_without_gpu_or_sglang(monkeypatch, tmp_path):
    monkeypatch.setattr(sglang, "PYTHON", Path(sys.executable))
    asked = launch({}, Layout(1, 1, 1))
    assert "the key" not in str(Sglang().command(asked)) and "the key" in Sglang().environment(asked).values()
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        Sglang().command(launch({}, None))
    monkeypatch.setattr(sglang, "PYTHON", tmp_path / "python")
    with pytest.raises(UserError, match=r"SGLang is not installed: python3 -m venv .venv-sglang"):
        Sglang().command(asked)


def test_the_server_gets_its_key_as_an_argument_of_its_own_process_alone(tmp_path):
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang/launch_server.py").write_text(
        "import os, sys; print(sys.argv[1:], 'SGLANG_SERVER_KEY' in os.environ)"
    )
    known = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SGLANG_SERVER_KEY": "the key"}
    line = [sys.executable, "-m", "stages.parts.engines.sglang_server", "--port", "1"]
    assert (
        subprocess.run(line, env=known, text=True, capture_output=True, check=True).stdout
        == "['--port', '1', '--api-key', 'the key'] False\n"
    )


def test_an_adapter_is_asked_for_behind_its_base(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sglang, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(
        process, "visible_gpus", lambda: [Gpu(0, "GPU-a", "H100", 80 * 2**30, 80 * 2**30, (9, 0), "580")]
    )
    monkeypatch.setattr(process, "model_shape", lambda *_: ModelShape(2 * 10**9, 8, 8, 2))
    monkeypatch.setattr(process, "plan", lambda *_: Layout(1, 1, 1))
    (tmp_path / "epoch-6").mkdir()
    config = tmp_path / "epoch-6/adapter_config.json"
    config.write_text(json.dumps({"r": 8}))
    params = load_params(ROOT / "params.yaml")
    engine = prepare(
        Sglang(), ModelToServe(tmp_path, "base-abc", {"epoch-6": tmp_path / "epoch-6"}, on_gpus=True), params.runtime
    )
    assert engine.served.names["base"] == "base-abc" and engine.served.names["epoch-6"].startswith("base-abc:epoch-6-")
    assert f"{engine.served.names['epoch-6'].removeprefix('base-abc:')}={tmp_path / 'epoch-6'}" in engine.line

    config.write_text(json.dumps({"r": 8, "modules_to_save": ["embed_tokens"]}))
    with pytest.raises(UserError, match="which SGLang can't serve beside a base"):
        prepare(
            Sglang(),
            ModelToServe(tmp_path, "base-abc", {"epoch-6": tmp_path / "epoch-6"}, on_gpus=True),
            params.runtime,
        )


def sglang_shop(folder: Path, **options: str) -> Shop:
    shop = make_shop(folder, **options)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["engine"]["kind"] = "sglang"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return shop


@pytest.mark.slow
@pytest.mark.parametrize("style", ["direct", "chain_of_thought"])
def test_the_service_runs_on_sglang(tmp_path, style):
    shop = sglang_shop(tmp_path / "shop", style=style)
    with (
        ended(run_stub(shop, "tests.serve.sglang_stub", "--model", shop.model, "--key", ENGINE_KEY)),
        serving(shop) as address,
    ):
        answer = requests.post(f"{address}/classify_intent", json={"query": "My card got declined"}, timeout=30).json()
        assert answer["label"] in LABELS and 0.5 < answer["confidence"] < 1 and len(answer["runners_up"]) == 3
        sent = last_request(shop)
        assert sent["continue_final_message"] and sent["messages"][-1]["role"] == "assistant"
        assert ("ebnf" in sent, "regex" in sent, "structured_outputs" in sent) == (
            style == "direct",
            style != "direct",
            False,
        )
        assert (
            requests.post(f"{address}/classify_intent", json={"query": "SIMULATE-REFUSE"}, timeout=30).status_code
            == 413
        )


@pytest.mark.slow
@pytest.mark.parametrize("ids", [(1, 2, 3), (1, 2, 4)])
def test_other_tokens_than_the_trained_ones_are_seen_at_the_start(tmp_path, ids):
    """SGLang reports them with the choice, where vLLM reports them beside the choices."""
    shop = sglang_shop(tmp_path / "shop")
    sidecar = read_json(shop.folder / paths.SIDECAR) | {"trial_tokens": token_fingerprint((1, 2, 3))}
    write_json(shop.folder / paths.SIDECAR, sidecar)
    options = ("--model", shop.model, "--key", ENGINE_KEY, "--prompt-ids", *map(str, ids))
    with ended(run_stub(shop, "tests.serve.sglang_stub", *options)):
        if ids == (1, 2, 3):
            with serving(shop) as address:
                assert requests.get(f"{address}/readyz", timeout=10).ok
        else:
            assert start(shop, "serve").wait(60) == 1
            assert "served with another tokenizer or chat template" in (shop.folder / "log").read_text()


@pytest.mark.slow
def test_an_adapter_that_the_base_would_answer_for_is_refused(tmp_path):
    """Asked for by its own name, SGLang's base answers, and says nothing."""
    shop = sglang_shop(tmp_path / "shop")
    stub = run_stub(
        shop, "tests.serve.sglang_stub", "--model", "base-abc", "--adapter", shop.model, "--key", ENGINE_KEY
    )
    with ended(stub):
        service = start(shop, "serve")
        assert service.wait(60) == 1
    assert f"it serves base-abc, base-abc:{shop.model}, not {shop.model}:" in (shop.folder / "log").read_text()
