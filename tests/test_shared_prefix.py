"""The shared-prefix batch against the stock one: same losses, same gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from stages.parts.shared_prefix import IGNORED, SHARED_PREFIX, SharedPrefixCollator, common_prefix_length


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


def model(kv_heads: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        pad_token_id=0,
    )
    made = get_peft_model(
        LlamaForCausalLM(config).double(), LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"])
    )
    for name, weight in made.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide errors in lora_A's gradients
            torch.nn.init.normal_(weight, std=0.1)
    return made


def loss_and_gradients(network: torch.nn.Module, batch: dict[str, torch.Tensor], implementation: str):
    network.set_attn_implementation(implementation)
    network.zero_grad()
    loss = network(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("count", "prefix", "kv_heads"), [(5, 17, 2), (1, 4, 4), (3, 1, 1)])
def test_losses_and_gradients_equal_the_stock_collators(count, prefix, kv_heads, checkpointing):
    network, batch = model(kv_heads).train(), rows(count, prefix)
    if checkpointing:
        network.enable_input_require_grads()
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    length = common_prefix_length(batch)
    assert length >= prefix
    longest = max(len(row["input_ids"]) for row in batch)
    stock = {
        "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch]),
        "labels": torch.tensor([row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in batch]),
        "attention_mask": torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]),
    }
    expected, gradients = loss_and_gradients(network, stock, "sdpa")
    found, ours = loss_and_gradients(network, SharedPrefixCollator(length)(batch), SHARED_PREFIX)
    assert found == pytest.approx(expected, abs=1e-10)
    assert ours.keys() == gradients.keys() and len(ours) > 20
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm(), name  # RMSNorm rounds to float32 whatever the weights are


def test_the_prefix_stops_short_of_what_is_learned():
    same = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}] * 2
    assert common_prefix_length(same) == 1  # token 6 predicts the first learned token, so it belongs to the suffix
    assert common_prefix_length([{"input_ids": [1, 2], "labels": [IGNORED, 2]}, {"input_ids": [3, 2], "labels": [IGNORED, 2]}]) == 0
