"""A merged model against its base with the adapter beside it."""

from pathlib import Path

import pytest
import requests
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.parts.engines.process import KINDS, ModelToServe, prepare, running
from stages.parts.run.errors import UserError
from stages.parts.run.params import Lora, TinyStudentSettings, load_params
from stages.parts.students import weights
from stages.parts.students.tiny import build_model, build_tokenizer
from stages.parts.students.weights import export, layers_below, lora_config, merge_adapter
from stages.parts.task.program import IntentClassifier

PROGRAM = IntentClassifier(["card_arrival", "declined_card_payment"], "Classify.", "direct")


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A tiny base with random weights, and an adapter of it that changes what it says."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["where is my card"], PROGRAM, 600)
    model = build_model(
        tokenizer,
        TinyStudentSettings(kind="tiny", hidden_size=64, layers=2, vocabulary=600, epochs=1, learning_rate=0.1),
    )
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # zero at the start: such an adapter could not show that it is there
            torch.nn.init.normal_(weight, std=0.3)
    tuned.save_pretrained(adapter)
    return base, adapter


def test_a_merged_model_says_what_base_and_adapter_say(pair, tmp_path):
    base, adapter = pair
    merge_adapter(base, adapter, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "where is my card"}], return_tensors="pt", return_dict=False
    )
    before = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(merged, beside, atol=1e-4) and (merged - before).abs().max() > 0.1
    assert not list((tmp_path / "merged").glob("adapter*"))


def test_adapters_on_the_last_layers_alone_leave_the_others_without_gradient(pair):
    base, _ = pair
    model = AutoModelForCausalLM.from_pretrained(base)
    count = model.config.num_hidden_layers
    config = lora_config(Lora(r=4, alpha=4, dropout=0.0), embeddings=False, without=layers_below(model, 1))
    tuned = get_peft_model(model, config)
    trained = {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert trained and all(f".layers.{count - 1}." in name for name in trained)
    assert layers_below(model, None) == 0
    with pytest.raises(UserError, match=f"the student has {count} layers: lower it"):
        layers_below(model, count + 1)


def test_trained_embeddings_stay_tied_and_merge_to_the_same_model(pair, tmp_path):
    base, adapter = pair
    config = lora_config(Lora(r=4, alpha=4, dropout=0.0), embeddings=True)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    ids = torch.tensor([[1, 2, 3, 40]])
    steps = torch.optim.SGD([weight for weight in tuned.parameters() if weight.requires_grad], 1.0)
    for _ in range(3):
        tuned(ids, labels=ids).loss.backward()
        steps.step()
        steps.zero_grad()
    before = AutoModelForCausalLM.from_pretrained(base)
    expected = tuned.eval()(ids).logits
    assert torch.equal(tuned.get_input_embeddings().weight, tuned.get_output_embeddings().weight)
    assert not torch.equal(tuned.get_input_embeddings().weight, before.model.embed_tokens.weight)
    tuned.save_pretrained(adapter)
    merge_adapter(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(ids).logits, expected, atol=1e-3) and (before(ids).logits - expected).abs().max() > 0.1
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_a_failed_merge_leaves_what_was_there(pair, tmp_path, monkeypatch):
    base, adapter = pair
    merge_adapter(base, adapter, tmp_path / "merged")
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.AutoTokenizer, "from_pretrained", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "merged"}


def test_a_missing_adapter_is_one_line(pair, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no adapter_config\.json"):
        merge_adapter(pair[0], tmp_path / "nowhere", tmp_path / "merged")


def test_a_student_trained_whole_is_exported_as_it_is(pair, tmp_path):
    base, _ = pair
    export(base, base, tmp_path / "exported")
    written = {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    assert written == {path.name: path.read_bytes() for path in base.iterdir()}


@pytest.mark.engine
def test_vllm_and_transformers_write_the_same_with_a_merged_model(pair, tmp_path):
    base, adapter = pair
    merge_adapter(base, adapter, tmp_path / "merged")
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
        for text in ("where is it", "my card")
    ]

    def written(model: torch.nn.Module, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        return whole[0, len(prompt) :].tolist()

    expected = [written(beside, prompt) for prompt in prompts]
    assert [written(merged, prompt) for prompt in prompts] == expected
    assert expected != [written(AutoModelForCausalLM.from_pretrained(base), prompt) for prompt in prompts]
    with running(prepare(KINDS["vllm"], ModelToServe(tmp_path / "merged", "merged"), load_params().runtime)) as served:
        for prompt, wanted in zip(prompts, expected, strict=True):
            answer = requests.post(
                f"{served.api_base}/completions",
                json={
                    "model": "merged",
                    "prompt": prompt,
                    "max_tokens": 16,
                    "temperature": 0,
                    "return_token_ids": True,
                },
                headers={"Authorization": f"Bearer {served.key}"},
                timeout=60,
            ).json()
            assert answer["choices"][0]["token_ids"] == wanted
