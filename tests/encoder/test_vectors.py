import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import BertConfig

from stages import embed
from stages.parts.encoder import vectors
from stages.parts.encoder.encoder import centred
from stages.parts.encoder.vectors import label_texts, read_embeddings, stored_vectors
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json, write_jsonl
from tests.conftest import ROOT
from tests.encoder.test_encoder import SIZES, TEXTS, sentence_model


def prepare(folder: Path, rows: int, encoder: dict | str) -> None:
    """Write what stage embed reads."""
    for part in vectors.PARTS:
        texts = [{"id": f"{part} {n}", "text": f"{TEXTS[n % 3]} {n}"} for n in range(rows)]
        write_jsonl(folder / paths.SPLITS / f"{part}.jsonl", texts)
    write_jsonl(folder / paths.REVIEWED, [])
    write_json(folder / paths.LABELS, ["card_declined", "new_card"])
    write_json(folder / paths.DESCRIPTIONS, {"new_card": "where is a new one"})
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"encoder": encoder}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def own_weights(folder: Path) -> dict:
    source = sentence_model(folder / "model", BertConfig(**SIZES))
    return {
        "weights": {"source": "folder", "path": str(source)},
        "precision": "float32",
        "prompt": None,
        "train": "frozen",
    }


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_vector_for_each_row_in_order_and_for_each_label(stage, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 4)
    prepare(stage, 10, own_weights(stage))
    embed.main()
    found = read_embeddings()
    assert found["pool"].shape == (10, 32) and found["reviewed"].shape == (0, 32) and found["labels"].shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(found["pool"], axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(found["pool"], found["gold"])
    np.testing.assert_array_equal(found.of_rows([{"id": "test 7"}, {"id": "pool 2"}]), found["pool"][[7, 2]])
    assert found.of_rows([]).shape == (0, 32)
    np.testing.assert_array_equal(stored_vectors([{"id": "gold 1"}]), found["gold"][[1]])
    assert np.load(paths.EMBEDDINGS / "pool.npy").dtype == np.float16
    assert not list((stage / ".cache/embeddings").rglob("*.npy")), "nothing is kept of a run that ended"


def test_without_an_encoder_there_are_no_vectors_and_nothing_is_fetched(stage):
    prepare(stage, 3, "none")
    embed.main()
    assert stored_vectors([{"id": "pool 1"}]) is None
    assert read_embeddings() is None and [file.name for file in paths.EMBEDDINGS.iterdir()] == ["encoder.json"]
    assert not (stage / ".cache/weights").exists()


def test_a_changed_encoder_changes_the_key(stage):
    wanted = own_weights(stage)
    keys = set()
    for change in ({}, {"prompt": "query : "}, {"precision": "int8"}):
        prepare(stage, 1, wanted | change)
        embed.main()
        keys.add(read_json(paths.EMBEDDINGS_ENCODER)["key"])
    assert len(keys) == 3
    prepare(stage, 1, wanted | {"train": "whole"})  # trains a copy: the run's vectors stay
    embed.main()
    assert read_json(paths.EMBEDDINGS_ENCODER)["key"] in keys


def test_vectors_before_the_stage_ran_are_one_line(stage):
    with pytest.raises(UserError, match="dvc repro"):
        read_embeddings()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_chunk(stage):
    prepare(stage, 40_000, own_weights(stage))
    command = [sys.executable, "-m", "stages.embed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(stage)}
    process = subprocess.Popen(command, cwd=stage, env=environment)
    done = stage / ".cache/embeddings"
    while process.poll() is None and len(list(done.rglob("[!.]*.npy"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in done.rglob("[!.]*.npy")}
    assert before and not (stage / paths.EMBEDDINGS_ENCODER).exists()
    embed.main()
    assert read_embeddings()["pool"].shape == (40_000, 32)


def test_centred_vectors_are_unit_and_a_description_joins_a_name():
    draw = np.random.default_rng(0).normal(size=(50, 4)) + 5
    moved = centred(draw, draw.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1)
    assert label_texts(["new_card", "cash"], {"cash": "Money"}) == ["new card", "cash: Money"]
