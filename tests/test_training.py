"""The training loop itself: the real TRL trainer on a toy student."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import set_seed

from stages.parts import training
from stages.parts.errors import UserError
from stages.parts.params import TinyStudent
from stages.parts.task import IntentClassifier, training_messages
from stages.parts.tiny_llama import build_model, build_tokenizer, format_lessons
from stages.parts.training import encode, fine_tune

PROGRAM = IntentClassifier(["card_arrival", "declined_card_payment"], "Classify.", "direct")
TEXTS = [f"{word} my card {number}" for number, word in enumerate(["where is", "they declined", "still waiting for", "refused"] * 5)]
TOKENIZER = build_tokenizer(TEXTS, PROGRAM, 600)
ROWS = [encode(TOKENIZER, training_messages(PROGRAM, text, PROGRAM.labels[number % 2], "")) for number, text in enumerate(TEXTS)]


def train(folder: Path, epochs: int = 2, learning_rate: float = 0.01, dropout: float = 0.0) -> list[dict]:
    set_seed(0)
    model = build_model(TOKENIZER, TinyStudent(kind="tiny", hidden_size=32, layers=2, vocabulary=600, epochs=1, learning_rate=0.1))
    lora = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return fine_tune(model, TOKENIZER, ROWS, folder=folder, epochs=epochs, batch=4, learning_rate=learning_rate, seed=0, lora=lora)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("checkpoint-*"), key=lambda step: int(step.name.rpartition("-")[2])) / "adapter_model.safetensors")


def test_sharing_the_prefix_trains_the_same_adapter(tmp_path, monkeypatch, capsys):
    ours = train(tmp_path / "shared")
    assert "share a prefix" in capsys.readouterr().out
    monkeypatch.setattr(training, "common_prefix_length", lambda rows: 0)
    stock = train(tmp_path / "stock")
    assert "each computed whole" in capsys.readouterr().out
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in stock], abs=1e-4)
    for name, weight in adapter(tmp_path / "stock").items():
        assert torch.allclose(adapter(tmp_path / "shared")[name], weight, atol=1e-4), name


def test_dropout_falls_back_to_whole_rows(tmp_path, capsys):
    train(tmp_path, epochs=1, dropout=0.1)
    assert "each computed whole (LoRA dropout is above 0)" in capsys.readouterr().out


def test_a_run_that_finds_a_checkpoint_ends_where_an_unbroken_one_does(tmp_path):
    whole = train(tmp_path / "whole")
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda step: int(step.name.rpartition("-")[2]))
    shutil.copytree(first, tmp_path / "broken" / first.name)
    resumed = train(tmp_path / "broken")
    assert [entry["step"] for entry in resumed] == [entry["step"] for entry in whole]
    for name, weight in adapter(tmp_path / "whole").items():
        assert torch.equal(adapter(tmp_path / "broken")[name], weight), name


def test_a_loss_that_is_no_number_stops_with_what_to_lower(tmp_path):
    with pytest.raises(UserError, match="lower the learning rate"):
        train(tmp_path, learning_rate=1e38)


def test_the_base_learns_words_and_format_but_no_label_from_a_text():
    lessons = list(format_lessons(TEXTS, PROGRAM, epochs=200, seed=0))
    answers = [messages[-1]["content"] for messages in lessons[:: len(TEXTS)]]  # one text's
    share = sum("card_arrival" in answer for answer in answers) / len(answers)
    assert 0.35 < share < 0.65
