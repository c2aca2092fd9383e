"""A label that another one begins with, on a real engine: answers that are held to the labels are the free ones."""

import asyncio
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from stages.parts.engines.http_client import engine_client
from stages.parts.engines.process import KINDS, prepare, running
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from stages.parts.students.scoring import check_tokens, max_tokens
from stages.parts.task.program import IntentClassifier, training_messages
from stages.parts.training.rows import encode
from stages.parts.training.trainer import fine_tune
from tests.students.test_chat_template import tokenizer_of
from tests.training.test_trainer import plan

LABELS = ["refund", "refund_not_showing_up", "card_arrival"]
QUERIES = {"refund": "give it back", "refund_not_showing_up": "it never came back", "card_arrival": "where is my card"}
ROWS = [(f"{query} {number}", label) for number in range(16) for label, query in QUERIES.items()]


@pytest.fixture(scope="module", params=["direct", "chain_of_thought"])
def student(request, tmp_path_factory) -> tuple[IntentClassifier, Path]:
    """A small Llama with Llama 3.1's template and several tokens a label, which has learned which query is which."""
    folder = tmp_path_factory.mktemp("student")
    program, tokenizer = IntentClassifier(LABELS, "Classify.", request.param), tokenizer_of("llama3_1")
    tokenizer.pad_token, tokenizer.model_max_length = "<|eot_id|>", 1024
    assert len(tokenizer.encode(" refund_not_showing_up")) > len(tokenizer.encode(" refund"))
    set_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 1024}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends))
    rows = [encode(tokenizer, training_messages(program, text, label, "It says so.")) for text, label in ROWS]
    fine_tune(model, tokenizer, rows, plan(epochs=40, batch=16, learning_rate=0.005), folder / "scratch")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return program, folder


def other_template(folder: Path) -> Path:
    """The student's tokenizer with a template that writes one sign more."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "!" + tokenizer.chat_template
    tokenizer.save_pretrained(folder / "other")
    return folder / "other"


@pytest.mark.engine
def test_held_answers_are_the_free_ones_and_their_end_counts(student):
    program, folder = student
    limit = max_tokens(program.style, LABELS, folder)

    async def predictions(served, held: bool) -> list:
        requests = ProgramRequests(program, KINDS["vllm"], "student", limit, held=held)
        async with engine_client(served, 60) as client:
            return [requests.read(await client.complete(requests.body(text))) for text, _ in ROWS[:24]]

    with running(prepare(KINDS["vllm"], folder, {}, load_params().runtime, on_gpus=False, name="student")) as served:
        check_tokens(served, ProgramRequests(program, KINDS["vllm"], "student", limit), folder)
        with pytest.raises(UserError, match="served with other tokens than it was trained with"):
            check_tokens(served, ProgramRequests(program, KINDS["vllm"], "student", limit), other_template(folder))
        held, free = (asyncio.run(predictions(served, held)) for held in (True, False))
    wanted = [label for _, label in ROWS[:24]]
    assert [found.label for found in held] == [found.label for found in free] == wanted
    for found in held:
        assert found.probabilities[found.label] > 0.9
        assert sum(found.probabilities.values()) <= 1 + 1e-6
