"""The shared-prefix batch against TRL's own: same losses, same gradients, in an unmodified SFTTrainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from stages.parts.training import shared_prefix
from stages.parts.training.rows import cut
from stages.parts.training.shared_prefix import IGNORED, SharedPrefixCollator, common_prefix_length, share_prefix

TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel({str(token): token for token in range(97)}, unk_token="1")),
    pad_token="0",
    eos_token="2",
)
ALL_LINEAR = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
WITH_EMBEDDINGS = LoraConfig(
    r=4, target_modules=["embed_tokens", "q_proj", "v_proj", "down_proj"], modules_to_save=["lm_head"]
)
WHOLE_EMBEDDINGS = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"])


def rows(count: int, prefix: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of random tokens with a common prefix and suffixes of many lengths."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, 97, (length,), generator=draw).tolist()

    shared, made = tokens(prefix), []
    for number in range(count):
        query, answer = [number % 3, *tokens(2 + number * 3)], tokens(1 + number % 4)
        made.append({"input_ids": shared + query + answer, "labels": [IGNORED] * (prefix + len(query)) + answer})
    return made


def model(kv_heads: int, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        pad_token_id=0,
    )
    return LlamaForCausalLM(shape).to(dtype)


class FirstStep(TrainerCallback):
    """Keeps the gradients of the first optimiser step, then ends the training."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        self.gradients = {
            name: weight.grad.clone() for name, weight in found["model"].named_parameters() if weight.grad is not None
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def first_step(
    network, given, shares: bool, folder: Path, *, batch=4, times=1, longest=None, checkpointing=False, lora=None
):
    """Loss and gradients of a trainer's first step over `batch` x `times` rows: ours, or TRL's with nothing of ours."""
    settings: dict[str, Any] = (
        {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}} if shares else {}
    )
    given = cut(given, longest) if shares and longest else given
    watch = FirstStep()
    if shares:
        share_prefix(network)
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=times,
            learning_rate=1e-3,
            max_grad_norm=0.0,
            max_length=None if shares else longest,
            gradient_checkpointing=checkpointing,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=0,
            **settings,
        ),
        train_dataset=Dataset.from_list(given),
        processing_class=TOKENIZER,
        data_collator=SharedPrefixCollator(common_prefix_length(given)) if shares else None,
        peft_config=lora,
        callbacks=[watch],
    )
    for name, weight in trainer.model.named_parameters():
        # zero at the start, which would hide errors in the other factor's gradients
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    trainer.train()
    return trainer.state.log_history[0]["loss"], watch.gradients


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, id="float32", marks=pytest.mark.slow), pytest.param(torch.float64, id="float64")],
)
@pytest.mark.parametrize(
    ("count", "prefix", "kv_heads", "how"),
    [
        pytest.param(4, 17, 2, {"lora": ALL_LINEAR}, id="padding"),
        pytest.param(4, 17, 2, {"lora": ALL_LINEAR, "checkpointing": True}, id="checkpointing"),
        pytest.param(1, 4, 4, {"lora": ALL_LINEAR}, id="one row"),
        pytest.param(8, 33, 1, {"lora": ALL_LINEAR, "batch": 2, "times": 4}, id="accumulation"),
        pytest.param(
            8,
            33,
            1,
            {"lora": ALL_LINEAR, "batch": 2, "times": 4, "checkpointing": True},
            id="accumulation, checkpointing",
        ),
        pytest.param(8, 9, 2, {"lora": ALL_LINEAR, "batch": 8, "longest": 27}, id="rows longer than the maximum"),
        pytest.param(4, 17, 2, {"lora": WITH_EMBEDDINGS}, id="adapters on the embeddings, whole head"),
        pytest.param(4, 17, 2, {"lora": WHOLE_EMBEDDINGS, "checkpointing": True}, id="whole embeddings and head"),
        pytest.param(4, 17, 2, {}, id="all weights"),
    ],
)
def test_losses_and_gradients_equal_trls_own(count, prefix, kv_heads, how, dtype, tmp_path):
    given = rows(count, prefix)
    expected, gradients = first_step(model(kv_heads, dtype), given, False, tmp_path, **how)
    found, ours = first_step(model(kv_heads, dtype), given, True, tmp_path, **how)
    # RMSNorm rounds to float32 whatever the weights
    assert found == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 1e-6)
    assert ours.keys() == gradients.keys() and len(ours) > 6
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name
        assert (ours[name] - gradient).norm() <= (1e-5 if dtype == torch.float32 else 1e-6) * gradient.norm(), name


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_matrix_products_give_the_kernels_losses_and_gradients(kv_heads, tmp_path, monkeypatch):
    given = rows(4, 17)
    expected, gradients = first_step(model(kv_heads, torch.float64), given, True, tmp_path, lora=ALL_LINEAR)
    monkeypatch.setattr(shared_prefix, "by_kernel", shared_prefix.by_products)  # as for bfloat16 on a CPU
    found, ours = first_step(model(kv_heads, torch.float64), given, True, tmp_path, lora=ALL_LINEAR)
    assert found == pytest.approx(expected, abs=1e-6)
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_bfloat16_on_a_cpu_takes_the_products(tmp_path, monkeypatch):
    monkeypatch.delattr(shared_prefix, "by_kernel")
    found, _ = first_step(model(2, torch.bfloat16), rows(4, 17), True, tmp_path, lora=ALL_LINEAR)
    expected, _ = first_step(model(2, torch.float32), rows(4, 17), False, tmp_path, lora=ALL_LINEAR)
    assert found == pytest.approx(expected, abs=0.03)


def test_the_prefix_stops_short_of_what_is_learned():
    same = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}] * 2
    assert common_prefix_length(same) == 1  # token 6 predicts the first learned token, so it belongs to the suffix
    assert (
        common_prefix_length(
            [{"input_ids": [1, 2], "labels": [IGNORED, 2]}, {"input_ids": [3, 2], "labels": [IGNORED, 2]}]
        )
        == 0
    )
