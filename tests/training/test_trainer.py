"""The training loop itself: the real TRL trainer on a toy student, kills and all."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    TrainerState,
    set_seed,
)

from stages import lora
from stages.base import TRAINING
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_jsonl
from stages.parts.run.params import TinyStudentSettings, load_params
from stages.parts.students.tiny import build_model, build_tokenizer, format_lessons
from stages.parts.task.program import IntentClassifier, training_messages
from stages.parts.training import trainer
from stages.parts.training.launch import CONFIGURATIONS
from stages.parts.training.rows import cut, encode
from stages.parts.training.shared_prefix import can_share
from stages.parts.training.trainer import TrainingPlan, fine_tune, rows_at_once
from stages.parts.training.watch import CURVE_POINTS, Watch, complete_checkpoints, learning_curve
from tests.conftest import ROOT

PROGRAM = IntentClassifier(["card_arrival", "declined_card_payment"], "Classify.", "direct")
TEXTS = [
    f"{word} my card {number}"
    for number, word in enumerate(["where is", "they declined", "still waiting for", "refused"] * 5)
]
TOKENIZER = build_tokenizer(TEXTS, PROGRAM, 600)
MESSAGES = [training_messages(PROGRAM, text, PROGRAM.labels[number % 2], "") for number, text in enumerate(TEXTS)]
ROWS = [encode(TOKENIZER, messages) for messages in MESSAGES]
STUDENT = TinyStudentSettings(kind="tiny", hidden_size=32, layers=2, vocabulary=600, epochs=1, learning_rate=0.1)


SETTINGS = TRAINING.model_copy(update={"method": "lora", "epochs": 2, "batch": 4, "learning_rate": 0.01})


def plan(lora: LoraConfig | None = None, at_once: int | None = None, answers: Any = (), **changes: Any) -> TrainingPlan:
    return TrainingPlan(SETTINGS.model_copy(update=changes), seed=0, answers=answers, at_once=at_once, lora=lora)


def train(folder: Path, dropout: float = 0.0, **changes: Any) -> list[dict]:
    set_seed(0)
    lora = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = plan(lora=lora, **changes)
    return fine_tune(build_model(TOKENIZER, STUDENT), TOKENIZER, ROWS, settings, folder, keep_epochs=True)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(complete_checkpoints(folder)[-1] / "adapter_model.safetensors")


@pytest.mark.parametrize("query_dropout", [0.0, 0.3])
def test_sharing_the_prefix_trains_the_same_adapter(tmp_path, monkeypatch, capsys, query_dropout):
    ours = train(tmp_path / "shared", query_dropout=query_dropout)
    assert "share a prefix" in capsys.readouterr().out
    monkeypatch.setattr(trainer, "common_prefix_length", lambda rows: 0)
    stock = train(tmp_path / "stock", query_dropout=query_dropout)
    assert "each computed whole" in capsys.readouterr().out
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in stock], abs=1e-4)
    for name, weight in adapter(tmp_path / "stock").items():
        assert torch.allclose(adapter(tmp_path / "shared")[name], weight, atol=1e-4), name


def test_fewer_rows_at_once_train_the_same_adapter(tmp_path):
    train(tmp_path / "all")
    train(tmp_path / "few", at_once=3)
    for name, weight in adapter(tmp_path / "all").items():
        assert torch.allclose(adapter(tmp_path / "few")[name], weight, atol=1e-4), name
    assert [rows_at_once(32, wanted) for wanted in (None, 99, 12, 1)] == [(32, 1), (32, 1), (8, 4), (1, 32)]


def test_dropout_falls_back_to_whole_rows(tmp_path, capsys):
    train(tmp_path, epochs=1, dropout=0.1)
    assert "each computed whole (LoRA dropout is above 0)" in capsys.readouterr().out


def test_a_tokenizer_without_padding_falls_back_too(tmp_path, monkeypatch):
    bare = copy.deepcopy(TOKENIZER)
    bare.pad_token = None
    monkeypatch.setattr(trainer, "common_prefix_length", lambda rows: 0)
    assert fine_tune(build_model(TOKENIZER, STUDENT), bare, ROWS, plan(epochs=1), tmp_path)


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
OTHER_LAYERS = {
    "a window": MistralConfig(**SMALL, **HEADS, sliding_window=8),
    "a state": Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]),
    "only states": MambaConfig(**SMALL),
}


@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_students_with_other_layers_fall_back_to_whole_rows(name):
    assert not can_share(AutoModelForCausalLM.from_config(OTHER_LAYERS[name]), 9)
    assert can_share(build_model(TOKENIZER, STUDENT), 9)


def gemma(window: int) -> PreTrainedModel:
    set_seed(0)
    sizes = {**SMALL, **HEADS, "vocab_size": len(TOKENIZER), "head_dim": 16, "pad_token_id": TOKENIZER.pad_token_id}
    kinds = ["sliding_attention", "full_attention"]
    return AutoModelForCausalLM.from_config(Gemma3TextConfig(**sizes, sliding_window=window, layer_types=kinds))


def test_windows_that_hold_the_longest_row_share_its_prefix(tmp_path, monkeypatch, capsys):
    longest = max(len(row["input_ids"]) for row in ROWS)
    assert not can_share(gemma(longest - 1), longest)
    ours = fine_tune(gemma(longest), TOKENIZER, ROWS, plan(epochs=1), tmp_path / "shared")
    assert "share a prefix" in capsys.readouterr().out
    monkeypatch.setattr(trainer, "common_prefix_length", lambda rows: 0)
    stock = fine_tune(gemma(longest), TOKENIZER, ROWS, plan(epochs=1), tmp_path / "stock")
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in stock], abs=1e-4)


def test_a_machine_with_several_gpus_trains_on_one(tmp_path, monkeypatch):
    class SeesTwo(trainer.SFTConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(trainer, "SFTConfig", SeesTwo)
    made = trainer.make_trainer(build_model(TOKENIZER, STUDENT), TOKENIZER, ROWS, plan(epochs=1), tmp_path)
    assert made.args.n_gpu == 1


def test_rows_beyond_what_the_model_reads_are_cut_or_left_out(capsys):
    longest = max(len(row["input_ids"]) for row in ROWS)
    assert cut(ROWS, longest) == ROWS and not capsys.readouterr().out
    short = {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}
    assert cut([short, {"input_ids": [1] * 9, "labels": [-100] * 8 + [5]}], 5) == [short]
    assert "1 rows are longer than the 5 tokens that the model reads: cut, and 1 left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="no row's answer lies within the 2 tokens"):
        cut([short], 2)


def test_the_first_loss_that_is_no_number_stops_with_what_to_lower(tmp_path):
    with pytest.raises(UserError, match=r"not a number any more at step 3: lower the learning rate"):
        # step 1 warms up at rate 0, step 2 ruins the weights, step 3 is the first to see it
        train(tmp_path, learning_rate=1e38)
    assert not list(tmp_path.glob("checkpoint-*"))


def losses_until_stopped(losses: list[float]) -> int:
    """How many of these losses a Watch takes before it stops the training."""
    watch, state = Watch(step_tokens=1), TrainerState(max_steps=len(losses), epoch=0.0)
    watch.on_train_begin(None, state, None)
    for number, loss in enumerate(losses):
        state.global_step = number + 1
        try:
            watch.on_log(None, state, None, logs={"loss": loss, "grad_norm": 1.0})
        except UserError:
            return number
    return len(losses)


def test_a_loss_that_grows_for_good_stops_and_one_that_jumps_does_not():
    falling = [3 / (1 + step / 10) for step in range(100)]
    assert 100 < losses_until_stopped([*falling, *[4.0] * 100]) < 120
    assert losses_until_stopped([*falling, 9.0, *[0.3, 0.3, 1.2] * 30]) == 191
    assert losses_until_stopped([3.0, *[4.9] * 100]) == 101  # warmer at first, not lost


def test_running_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    def too_large(*_: object) -> None:
        torch.empty(2**55)

    monkeypatch.setattr(trainer.SharedPrefixCollator, "__call__", too_large)
    with pytest.raises(UserError, match=r"out of memory: lower runtime\.rows_at_once"):
        train(tmp_path)


def test_the_learning_curve_is_short_and_keeps_the_mean():
    log = [
        {"step": step, "epoch": step / 100, "learning_rate": 0.1, "loss": float(step), "mean_token_accuracy": 0.5}
        for step in range(1, 481)
    ]
    curve = learning_curve(log)
    assert len(curve) == CURVE_POINTS and curve[-1]["step"] == 480
    assert sum(point["loss"] for point in curve) / len(curve) == pytest.approx(240.5)
    assert [point["loss"] for point in learning_curve(log[:3])] == [1.0, 2.0, 3.0]


@pytest.fixture
def repository(tmp_path) -> Path:
    """What stage lora reads, small: base weights, 20 rows, parameters."""
    (tmp_path / "data/sft").mkdir(parents=True)
    shares = dict.fromkeys(PROGRAM.labels, 1 / len(PROGRAM.labels))  # labels are drawn: from the seed, whoever goes on
    lessons = [
        {"messages": row, "label": PROGRAM.labels[number % 2], "probabilities": shares}
        for number, row in enumerate(MESSAGES)
    ]
    write_jsonl(tmp_path / "data/sft/train.jsonl", lessons)
    set_seed(0)
    build_model(TOKENIZER, STUDENT).save_pretrained(tmp_path / "models/base")
    TOKENIZER.save_pretrained(tmp_path / "models/base")
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, method: str = "lora", **runtime: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"method": method, "epochs": 3, "batch": 4, "learning_rate": 0.01}
    params["runtime"] |= runtime
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def start_lora(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.lora"],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish_lora(folder: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    """Run the stage to its end; the last epoch's weights."""
    stage = start_lora(folder)
    said = stage.communicate()[0]
    assert stage.returncode == 0 and said.count("20 rows share a prefix") == processes, said
    assert not list((folder / ".cache/lora").iterdir())
    return load_file(next((folder / "models/lora/epoch-3").glob("*.safetensors")))


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_ends_with_the_same_weights(repository):
    stage = start_lora(repository)
    end = time.monotonic() + 120
    while not (found := list(repository.glob(".cache/lora/*/checkpoint-5/trainer_state.json"))):
        assert stage.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    stage.send_signal(signal.SIGKILL)
    stage.communicate()
    assert not (repository / "models/lora").exists()
    half_written = found[0].parent.with_name("checkpoint-10")  # what a kill amid writing leaves
    half_written.mkdir(exist_ok=True)
    (half_written / "trainer_state.json").write_text("")
    resumed = finish_lora(repository)
    curve = json.loads((repository / "reports/learning_curve.json").read_text())
    assert [point["step"] for point in curve] == list(range(1, 16))
    whole = finish_lora(repository)
    assert resumed.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.slow
def test_two_processes_train_what_one_does(repository):
    one = finish_lora(repository)
    configure(repository, parallel="ddp")
    two = finish_lora(repository, processes=2)
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=1e-4), name


@pytest.mark.parametrize(("kind", "makes"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("zero3", "DEEPSPEED")])
def test_accelerate_reads_the_committed_configurations(kind, makes):
    assert load_config_from_file(str(CONFIGURATIONS / f"{kind}.yaml")).distributed_type == makes


@pytest.mark.slow
def test_whole_weights_are_trained_and_kept(repository):
    configure(repository, method="full")
    tuned = finish_lora(repository)
    before = load_file(repository / "models/base/model.safetensors")
    assert tuned.keys() == before.keys()
    assert all(not torch.equal(tuned[name], weight) for name, weight in before.items())
    kept = {path.name for path in (repository / "models/lora/epoch-3").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept and not kept & {
        "optimizer.pt",
        "trainer_state.json",
    }


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has what these miss")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "qlora"}, "lora: train.method qlora needs bitsandbytes"),
        ({"method": "qlora", "parallel": "fsdp"}, "lora: 4-bit weights can't be spread with fsdp"),
        ({"parallel": "fsdp"}, "lora: runtime.parallel fsdp needs GPUs and there is none"),
    ],
)
def test_what_this_machine_lacks_is_one_line(repository, change, says):
    configure(repository, **change)
    stage = start_lora(repository)
    said = stage.communicate()[0]
    assert stage.returncode == 1 and says in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has what this misses")
def test_a_student_for_gpus_never_trains_on_the_cpu(repository):
    params = yaml.safe_load((repository / "params.yaml").read_text())
    (repository / "params.yaml").write_text(yaml.safe_dump(params | {"profile": "llama"}))
    stage = start_lora(repository)
    said = stage.communicate()[0]
    assert stage.returncode == 1 and "trains on a GPU, and PyTorch" in said.splitlines()[-1]


@pytest.mark.parametrize(("method", "rate"), [("lora", 0.01), ("full", 0.001)])
def test_whole_weights_take_a_tenth_of_the_adapters_rate(repository, monkeypatch, method, rate):
    configure(repository, method=method)
    monkeypatch.chdir(repository)
    plans = []
    monkeypatch.setattr(lora, "fine_tune", lambda *arguments, **_: plans.append(arguments[3]))
    lora.train(load_params())
    assert plans[0].settings.learning_rate == pytest.approx(rate)


def test_the_base_learns_the_format_but_no_label_from_a_text():
    lessons = list(format_lessons(TEXTS, PROGRAM, epochs=200, seed=0))
    answers = [messages[-1]["content"] for messages in lessons[:: len(TEXTS)]]  # one text's
    share = sum("card_arrival" in answer for answer in answers) / len(answers)
    assert 0.35 < share < 0.65
