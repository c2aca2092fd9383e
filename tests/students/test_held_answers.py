"""A label that another one begins with, and one that is spelled letter by letter, on a real engine: answers that are
held to the labels are the free ones.
"""

import asyncio
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from stages.parts.engines.http_client import engine_client
from stages.parts.engines.process import KINDS, ModelToServe, prepare, running
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params
from stages.parts.students.scoring import check_tokens, max_tokens
from stages.parts.task.program import IntentClassifier, training_messages
from stages.parts.training.rows import EncodedRow, encode
from stages.parts.training.trainer import fine_tune
from tests.students.test_chat_template import tokenizer_of
from tests.training.test_trainer import plan

LABELS = ["refund", "refund_not_showing_up", "card_arrival"]
SPELLED = "refund_not_showing_up"
QUERIES = {"refund": "give it back", "refund_not_showing_up": "it never came back", "card_arrival": "where is my card"}
ROWS = [(f"{query} {number}", label) for number in range(16) for label, query in QUERIES.items()]


def letter_by_letter(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> EncodedRow:
    """Return a row whose answer is SPELLED in other tokens than the tokenizer's; the others as they are."""
    usual, letters = (
        [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
        for parts in ([f" {SPELLED}"], f" {SPELLED}")
    )
    ids = row["input_ids"]
    starts = [
        place for place in range(len(ids)) if ids[place : place + len(usual)] == usual and row["labels"][place] > 0
    ]
    if not starts:
        return row
    start, end = starts[-1], starts[-1] + len(usual)
    return {name: [*row[name][:start], *letters, *row[name][end:]] for name in ("input_ids", "labels")}


@pytest.fixture(scope="module", params=["direct", "chain_of_thought"])
def student(request, tmp_path_factory) -> tuple[IntentClassifier, Path]:
    """A small Llama with Llama 3.1's template and several tokens a label, which has learned which query is which."""
    folder = tmp_path_factory.mktemp("student")
    program, tokenizer = IntentClassifier(LABELS, "Classify.", request.param), tokenizer_of("llama3_1")
    tokenizer.pad_token, tokenizer.model_max_length = "<|eot_id|>", 1024
    tokenizer.add_tokens([AddedToken(f" {SPELLED}", normalized=False)])
    usual = [len(tokenizer.encode(f" {label}", add_special_tokens=False)) for label in LABELS]
    assert usual[1] == 1 and max(usual) < len(SPELLED), "the letters are more than the longest label in usual tokens"
    set_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 1024}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends))
    rows = [encode(tokenizer, training_messages(program, text, label, "It says so.")) for text, label in ROWS]
    spelled = [letter_by_letter(row, tokenizer) for row in rows]
    assert sum(row != other for row, other in zip(rows, spelled, strict=True)) == 16
    fine_tune(model, tokenizer, spelled, plan(epochs=40, batch=16, learning_rate=0.005), folder / "scratch")
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

    with running(prepare(KINDS["vllm"], ModelToServe(folder, "student"), load_params().runtime)) as served:
        check_tokens(served, ProgramRequests(program, KINDS["vllm"], "student", limit), folder)
        with pytest.raises(UserError, match="served with other tokens than it was trained with"):
            check_tokens(served, ProgramRequests(program, KINDS["vllm"], "student", limit), other_template(folder))
        held, free = (asyncio.run(predictions(served, held)) for held in (True, False))
    wanted = [label for _, label in ROWS[:24]]
    assert [found.label for found in held] == [found.label for found in free] == wanted
    for found in held:
        assert found.probabilities[found.label] > 0.9
        assert sum(found.probabilities.values()) <= 1 + 1e-6
