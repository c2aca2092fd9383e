"""What the tiny student's base knows of its texts: at its start, and once it has learned their vectors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, set_seed

from stages.base import TRAINING
from stages.parts.run.params import TinyStudentSettings
from stages.parts.students.tiny import build_model, build_tokenizer, format_lessons, hold_words, start_as_bag_of_tokens
from stages.parts.task.program import IntentClassifier
from stages.parts.training.meanings import Meanings, MeaningsCollator
from stages.parts.training.rows import EncodedRow, encode
from stages.parts.training.shared_prefix import SharedPrefixCollator, common_prefix_length
from stages.parts.training.trainer import TrainingPlan, fine_tune

PROGRAM = IntentClassifier(["card_arrival", "declined_card_payment"], "Classify.", "direct")
VERBS = ["lost my", "please send another", "block the", "where is a", "they declined this"]
THINGS = ["card", "bank transfer", "top-up by phone", "pin", "euro account"]
TEXTS = [f"{verb} {thing}" for verb, thing in itertools.product(VERBS, THINGS)]
STUDENT = TinyStudentSettings(kind="tiny", hidden_size=32, layers=2, vocabulary=600, epochs=1, learning_rate=0.1)
TOKENIZER = build_tokenizer(TEXTS, PROGRAM, 600)
ROWS: list[EncodedRow] = [
    {**encode(TOKENIZER, messages), "text": [number % len(TEXTS)]}
    for number, messages in enumerate(format_lessons(TEXTS, PROGRAM, 20, 0))
]
HEADER = TOKENIZER.convert_tokens_to_ids("[[ ## label ## ]]")


def untrained() -> LlamaForCausalLM:
    set_seed(0)
    return build_model(TOKENIZER, STUDENT)


def vectors_of_words(seed: int) -> np.ndarray:
    """A vector for each text, the sum of its verb's and its thing's."""
    draw = np.random.default_rng(seed)
    verbs, things = draw.normal(size=(2, len(VERBS), 20))
    return np.array([verb + thing for verb, thing in itertools.product(verbs, things)])


@torch.no_grad()
def likeness(model: LlamaForCausalLM, meanings: Meanings) -> np.ndarray:
    """Cosines [N, N] of what the states read as, behind the texts, with the texts' vectors."""
    read = []
    for row in ROWS[: len(TEXTS)]:
        opening = row["input_ids"].index(HEADER)
        states = model.model(torch.tensor([row["input_ids"][: opening + 1]])).last_hidden_state
        read.append(states[0, -1].numpy() @ meanings.directions.T)
    vectors = np.array(read)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ meanings.vectors.T


def test_the_collator_finds_where_answers_open_in_rows_of_different_lengths():
    rows = ROWS[:8]
    assert len({len(row["input_ids"]) for row in rows}) > 2
    batch = MeaningsCollator(SharedPrefixCollator(common_prefix_length(rows)))(rows)
    assert (batch["input_ids"][0, batch["learned_from"][batch["openings"]]] == HEADER).all()
    assert batch["texts"].tolist() == list(range(8))


def test_an_untrained_model_reads_as_a_texts_vector_behind_it():
    model = untrained()
    before = model.model.embed_tokens.weight.detach().clone()
    meanings = Meanings(*start_as_bag_of_tokens(model, TOKENIZER, TEXTS, vectors_of_words(0), 0))
    of_texts = likeness(model, meanings)
    assert (of_texts.argmax(axis=1) == np.arange(len(TEXTS))).mean() > 0.5  # by chance 0.04; random layers disturb it
    assert of_texts.diagonal().mean() > of_texts.mean() + 0.4
    label = TOKENIZER.convert_tokens_to_ids(" card_arrival")
    assert torch.equal(model.model.embed_tokens.weight[label], before[label])


def test_without_an_encoder_words_of_the_same_texts_start_close():
    texts = ["pay by visa card", "a lost Visa CARD", "go by bank transfer", "one lost bank transfer"] * 3
    tokenizer = build_tokenizer(texts, PROGRAM, 700)
    model = build_model(tokenizer, STUDENT)
    start_as_bag_of_tokens(model, tokenizer, texts, None, 0)
    after = model.model.embed_tokens.weight.detach()
    after = after - after[tokenizer(" ".join(texts))["input_ids"]].mean(dim=0)  # the dimension that all share
    visa, card, transfer, capitals = (
        tokenizer(f"a {word}")["input_ids"][-1] for word in ("visa", "card", "transfer", "CARD")
    )
    assert capitals == card
    same, other = torch.nn.functional.cosine_similarity(after[[visa, card]], after[[card, transfer]])
    assert same > 0.9 and other < 0


@pytest.mark.slow
def test_the_base_learns_vectors_that_no_sum_of_tokens_gives_and_holds_its_words(tmp_path: Path):
    model, random = untrained(), np.random.default_rng(1).normal(size=(len(TEXTS), 20))
    meanings = Meanings(*start_as_bag_of_tokens(model, TOKENIZER, TEXTS, random, 0))
    hold_words(model, TOKENIZER, TEXTS)
    before, words = likeness(model, meanings).diagonal().mean(), model.model.embed_tokens.weight.detach().clone()
    settings = TRAINING.model_copy(update={"epochs": 4, "batch": 25, "learning_rate": 0.01, "weight_decay": 0.0})
    fine_tune(model, TOKENIZER, ROWS, TrainingPlan(settings, 0, meanings=meanings), tmp_path)
    assert likeness(model, meanings).diagonal().mean() > max(0.8, before + 0.2)
    word, label = TOKENIZER("a card")["input_ids"][-1], TOKENIZER.convert_tokens_to_ids(" card_arrival")
    after = model.model.embed_tokens.weight.detach()
    assert torch.equal(after[word], words[word]) and not torch.equal(after[label], words[label])
