"""What of the GPU path can be checked without a GPU: the layout, the command line, the failures."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.testclient import TestClient

from stages.parts.engines import layout, process
from stages.parts.engines.engine import AdapterSlots, Launch, Precision
from stages.parts.engines.layout import Layout, ModelShape, plan
from stages.parts.engines.process import ModelToServe, engine_devices, prepare, root_cause, running
from stages.parts.engines.vllm import Vllm
from stages.parts.run.errors import UserError
from stages.parts.run.machine import Gpu
from stages.parts.run.params import load_params
from tests.conftest import ROOT
from tests.gpus import H100, stub_nvidia_smi

GIB = 2**30
SHARE = 0.9  # runtime.gpu_memory_share
LLAMA_70B = ModelShape(weight_bytes=141_107_412_992, heads=64, kv_heads=8, layers=80)
LLAMA_8B = ModelShape(weight_bytes=16_060_556_376, heads=32, kv_heads=8, layers=32)
LLAMA_1B = ModelShape(weight_bytes=2_471_645_608, heads=32, kv_heads=8, layers=16)


@pytest.mark.parametrize(
    ("shape", "memory", "expected"),
    [
        (LLAMA_70B, [80 * GIB] * 4, Layout(4, 1, 1)),
        (LLAMA_70B, [80 * GIB] * 8, Layout(4, 1, 2)),
        (LLAMA_70B, [140 * GIB] * 2, Layout(2, 1, 1)),
        (LLAMA_70B, [48 * GIB] * 6, Layout(2, 3, 1)),
        (LLAMA_8B, [24 * GIB], Layout(1, 1, 1)),
        (LLAMA_8B, [16 * GIB] * 2, Layout(2, 1, 1)),
        (LLAMA_1B, [16 * GIB] * 3, Layout(1, 1, 3)),
    ],
)
def test_a_model_is_laid_over_the_fewest_gpus_it_fits_on(shape, memory, expected):
    found = plan(shape, memory, SHARE)
    assert found == expected
    share = shape.weight_bytes / found.tensor / found.pipeline
    assert share < min(memory) * SHARE


@pytest.mark.parametrize(
    ("memory", "says"),
    [([24 * GIB] * 4, "a model of 131 GiB does not fit on 4 GPU"), ([80 * GIB], "does not fit on 1 GPU")],
)
def test_a_model_that_does_not_fit_is_refused(memory, says):
    with pytest.raises(UserError, match=says):
        plan(LLAMA_70B, memory, SHARE)


def test_the_shape_is_read_from_a_snapshot(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8, "num_hidden_layers": 2}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    assert layout.model_shape(tmp_path) == ModelShape(100, 8, 8, 2)
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"num_attention_heads": 8, "num_hidden_layers": 2}, "vision_config": {}})
    )
    assert layout.model_shape(tmp_path) == ModelShape(100, 8, 8, 2), "of a model that reads pictures, too"
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 2}))
    with pytest.raises(UserError, match=r"has no num_attention_heads, num_hidden_layers: only decoder"):
        layout.model_shape(tmp_path)


def test_in_eight_bits_a_70b_fits_on_one_gpu(tmp_path):
    config = {
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
        "vocab_size": 128_256,
        "hidden_size": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(LLAMA_70B.weight_bytes)  # holds nothing, so takes no room
    shape = layout.model_shape(tmp_path, "fp8")
    assert LLAMA_70B.weight_bytes / 2 < shape.weight_bytes < 0.53 * LLAMA_70B.weight_bytes
    assert plan(shape, [141 * 10**9], SHARE) == Layout(1, 1, 1)
    with pytest.raises(UserError, match="does not fit"):
        plan(layout.model_shape(tmp_path), [141 * 10**9], SHARE)


def test_a_quantised_70b_is_laid_over_one_gpu_of_80_gb(tmp_path):
    """AWQ and GPTQ checkpoints count as they are stored, and are not quantised again."""
    config = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128_256}
    config |= {"hidden_size": 8192, "quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(39_770_000_000)
    assert plan(layout.model_shape(tmp_path), [81559 * 2**20], SHARE) == Layout(1, 1, 1)
    with pytest.raises(UserError, match=r"is quantised already \(awq\): leave teacher.quantization empty"):
        layout.model_shape(tmp_path, "fp8")


def test_a_smaller_share_of_a_gpu_holds_less():
    assert plan(LLAMA_8B, [24 * GIB], SHARE) == Layout(1, 1, 1)
    with pytest.raises(UserError, match=r"or a larger runtime.gpu_memory_share"):
        plan(LLAMA_8B, [24 * GIB], 0.6)


def gpu(**changes: Any) -> Gpu:
    return replace(Gpu(0, "GPU-a", "NVIDIA A100", 80 * GIB, 80 * GIB, (8, 0), "580.65"), **changes)


def test_a_cache_of_eight_bits_needs_a_gpu_that_has_them():
    Precision("fp8", "auto").check([gpu()])  # weights are unpacked
    Precision("fp8", "fp8").check([gpu(capability=(8, 9)), gpu(capability=(10, 0))])
    with pytest.raises(UserError, match=r"needs compute capability 8.9 .*NVIDIA A100 has 8.0: set teacher.kv_cache"):
        Precision(None, "fp8").check([gpu(capability=(9, 0)), gpu()])


def test_an_engine_gets_gpus_by_index(monkeypatch):
    """vLLM 0.32 refuses UUIDs in CUDA_VISIBLE_DEVICES, which CUDA takes."""
    assert engine_devices([gpu(index=2), gpu(index=0)]) == "2,0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engine_devices([gpu(is_slice=True, uuid="MIG-a")]) == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    with pytest.raises(UserError, match="can't be given a MIG slice by name"):
        engine_devices([gpu(is_slice=True, uuid="MIG-a")])


def test_an_engine_on_gpus_has_longer_to_start_the_larger_it_is(tmp_path, monkeypatch):
    for name, value in stub_nvidia_smi(tmp_path / "bin", *[H100] * 8).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb,GPU-cccc,GPU-dddd,GPU-aaaa")
    monkeypatch.setattr(process, "model_shape", lambda *_: LLAMA_70B)
    runtime = load_params(ROOT / "params.yaml").runtime
    engine = prepare(Vllm(), ModelToServe(tmp_path, "large", on_gpus=True), runtime)
    assert engine.patience_s == runtime.engine_start_s + 1411
    assert engine.environment["CUDA_VISIBLE_DEVICES"] == "1,2,3,0"
    assert engine.line[engine.line.index("--gpu-memory-utilization") + 1] == str(runtime.gpu_memory_share)
    assert engine.served.copies == 1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert prepare(Vllm(), ModelToServe(tmp_path, "large", on_gpus=True), runtime).served.copies == 2


def launch(**changes: Any) -> Launch:
    plain = {"model": Path("models/base"), "name": "base-abc", "adapters": {}, "port": 8001, "key": "k", "layout": None}
    return Launch(**plain | {"max_model_len": 4096, "kv_cache_gib": 1} | changes)


@pytest.mark.slow
def test_command_lines_are_ones_that_vllm_takes(tmp_path):
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "rank_pattern": {"q_proj": 12}}))
    for plan_of_gpus in (None, Layout(4, 2, 1), Layout(4, 1, 2)):
        line = Vllm().command(
            launch(adapters={"epoch-6-abc": tmp_path}, layout=plan_of_gpus, precision=Precision("fp8", "fp8"))
        )
        known = parser.parse_args(line[3:])
        assert known.quantization in (None, *ONLINE_QUANT_SHORTHAND_NAMES), "other names read quantised checkpoints"
        assert (known.quantization, known.kv_cache_dtype) == (
            ("fp8_per_tensor", "fp8") if plan_of_gpus else (None, "auto")
        )
        assert (known.host, known.port, known.max_lora_rank, known.served_model_name) == (
            "127.0.0.1",
            8001,
            16,
            ["base-abc"],
        )
        assert known.enable_prefix_caching and known.dtype == ("bfloat16" if plan_of_gpus else "float32")
        assert not plan_of_gpus or (known.enable_chunked_prefill and known.data_parallel_size == plan_of_gpus.copies)
        assert (known.tensor_parallel_size, known.pipeline_parallel_size) == (
            (plan_of_gpus.tensor, plan_of_gpus.pipeline) if plan_of_gpus else (1, 1)
        )

    come = launch(slots=AdapterSlots(count=16, max_rank=12))
    known = parser.parse_args(Vllm().command(come)[3:])
    assert (known.enable_lora, known.max_loras, known.max_lora_rank, known.lora_modules) == (True, 16, 16, None)
    allowed = [Vllm().environment(start)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] for start in (come, launch())]
    assert allowed == ["1", "0"], "adapters come and go at run time where there are places for them, and nowhere else"


@pytest.mark.slow
def test_who_loads_adapters_at_run_time_needs_the_key_and_the_one_route(monkeypatch):
    """vLLM's own app, with an engine behind it that takes everything."""
    start = launch(slots=AdapterSlots(count=16, max_rank=12), key="the engine's key")
    monkeypatch.setenv(
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING", Vllm().environment(start)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]
    )
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.api_server import build_app
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(Vllm().command(start)[3:])
    arguments.api_key = [start.key]
    app = build_app(arguments, ("generate",))
    config = SimpleNamespace(max_model_len=10, model="base-abc")
    engine = SimpleNamespace(model_config=config, renderer=None, input_processor=None, add_lora=AsyncMock())
    app.state.openai_serving_models = OpenAIServingModels(engine, [BaseModelPath(name="base-abc", model_path="base")])
    client, adapter = TestClient(app), {"lora_name": "cards-1", "lora_path": "/students/cards-1"}
    key = {"Authorization": f"Bearer {start.key}"}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert client.post(path, json=adapter).status_code == 401
        assert client.post(path, json=adapter, headers=key).status_code == 200
        assert client.post(path, json=adapter, headers=key).status_code in (400, 404), (
            "it is there already; it is there no more"
        )
    assert engine.add_lora.await_args.args[0].path == "/students/cards-1"
    assert client.post("/adapters", json={"name": "x", "src": "/"}, headers=key).status_code == 404, (
        "SageMaker's names of the same routes"
    )


def test_an_adapter_with_trained_embeddings_is_refused_beside_a_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "modules_to_save": ["embed_tokens"]}))
    with pytest.raises(UserError, match="brings trained embeddings, which vLLM can't serve beside a base"):
        Vllm().command(launch(adapters={"epoch-6-abc": tmp_path}))


RUNTIME = load_params(ROOT / "params.yaml").runtime.model_copy(update={"port": None, "engine_start_s": 20})


def test_an_engine_that_dies_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(
        Vllm, "command", lambda *_: [sys.executable, "-c", "print('early'); raise SystemExit('no such head size')"]
    )
    with pytest.raises(UserError, match=r"(?s)ended with code 1 before it was up.*early.*no such head size") as caught:  # noqa: SIM117
        with running(prepare(Vllm(), ModelToServe(Path("model")), RUNTIME)):
            pass
    assert "vllm-" in str(caught.value)


CORE = "(EngineCore pid=6285) ERROR 11-28 19:25:37 [core.py:1510] "
WORKER = "(Worker_TP1 pid=812) ERROR 11-28 19:25:37 [multiproc_executor.py:822] "
SERVER = """(APIServer pid=3) WARNING 11-28 19:22:49 [system_utils.py:255] It can cause `OSError: [Errno 24]`.
{cause}
Traceback (most recent call last):
  File "vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (
            f"{CORE}    raise ValueError(\n{CORE}ValueError: To serve one request, 1.81 GiB KV cache is needed",
            "ValueError: To serve one request, 1.81 GiB KV cache is needed",
        ),
        (
            f"{WORKER}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n"
            f"{CORE}Exception: WorkerProc initialization failed due to an exception in a background process. See stack "
            "trace for root cause.",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, the max_model_len (9000000) is greater than the derived max_model_len [type=value_error]\n"
            "    For further information visit https://errors.pydantic.dev",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, the max_model_len (9000000) is greater than the derived max_model_len [type=value_error]",
        ),
        (
            "usage: api_server.py [-h]\napi_server.py: error: argument --quantization: invalid choice",
            "api_server.py: error: argument --quantization: invalid choice",
        ),
    ],
)
def test_an_engine_that_fails_shows_the_first_exception_of_its_processes(tmp_path, cause, shown):
    (tmp_path / "log").write_text(SERVER.format(cause=cause))
    assert root_cause(tmp_path / "log").startswith(shown)


def test_an_engine_that_is_killed_before_it_is_up_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(Vllm, "command", lambda *_: ["sh", "-c", "kill -9 $$"])
    with pytest.raises(UserError, match="ended with code -9, killed, most likely for memory"):  # noqa: SIM117
        with running(prepare(Vllm(), ModelToServe(Path("model")), RUNTIME)):
            pass


def test_a_port_in_use_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"):
            prepare(Vllm(), ModelToServe(Path("model")), RUNTIME.model_copy(update={"port": port}))
