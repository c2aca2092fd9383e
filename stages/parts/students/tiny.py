"""A tiny Llama built from nothing: the embedded profile's student.

Its base weights know the words of the queries and the shape of an answer, but not the task: they learn to continue
queries and to answer each with a label drawn at random (and random words of it as reasoning), so accuracy stays at
chance. Without the answer format in the base, LoRA has nothing to build on: label and format tokens never get useful
embeddings.
"""

import random
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.parts.run.params import TinyStudentSettings
from stages.parts.task.program import IntentClassifier, training_messages

MAX_POSITIONS = 4096
HEAD_SIZE = 32
FINAL_NORM = 4.0  # where the last norm's weights start. At 1, small tied embeddings bound the logits
# Llama 3's turn markers, so that prompts have the real student's shape.
BEGIN, END_OF_TURN, HEADER, END_HEADER, PAD = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|pad|>",
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' "
    "}}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def constant_pieces(program: IntentClassifier) -> list[str]:
    """Return what stands around every query, reasoning and label, as the chat template writes it: the system's turn,
    the opening of the user's, the opening of the assistant's, the headers of the answer's fields.

    Cut where a demonstration's turns begin and end, so that prompts with demonstrations are made of the same pieces.
    The blank before a value belongs to the value, as in the tokenizers of larger models.
    """
    system, user, answer = (message["content"] for message in training_messages(program, "QUERY", "LABEL", "REASONING"))
    opening = {role: f"{HEADER}{role}{END_HEADER}\n\n" for role in ("system", "user", "assistant")}
    return [
        opening["system"] + system + END_OF_TURN,
        opening["user"] + user.removesuffix("QUERY"),
        opening["assistant"],
        *filter(None, re.split(" REASONING| LABEL", answer)),
    ]


def build_tokenizer(texts: Sequence[str], program: IntentClassifier, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the queries, of `vocabulary` tokens in all; the constant pieces and the label names are one
    token each.

    A model this small should not spend itself on spelling what never changes: six tokens stand around a query instead
    of 370.
    """
    constant = [*constant_pieces(program), *(f" {label}" for label in program.labels)]
    phrases = [AddedToken(phrase, normalized=False) for phrase in constant]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()  # four thousand queries are too few to learn each word twice
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(phrases),
        special_tokens=[BEGIN, END_OF_TURN, HEADER, END_HEADER, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(phrases)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, settings: TinyStudentSettings) -> LlamaForCausalLM:
    """Random weights in float32; tied embeddings, so that the vocabulary is paid for once."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // HEAD_SIZE,
        num_key_value_heads=settings.hidden_size // HEAD_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.constant_(model.model.norm.weight, FINAL_NORM)
    return model


def start_from_word_vectors(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], seed: int
) -> None:
    """Set the embeddings of the texts' tokens by latent semantic analysis: tokens of the same texts start close to each
    other.

    Directions are those of LSA (Deerwester et al. 1990; singular values to the power of 1/2), turned at random so that
    no few dimensions carry all, and lengths those of the random embeddings. On Banking77 with all true labels: 90.6 %
    against 88.7 % without.
    """
    embeddings = model.model.embed_tokens.weight
    size = embeddings.shape[1]
    of_tokens = TfidfVectorizer(
        analyzer=tokenizer.tokenize, vocabulary=tokenizer.get_vocab(), lowercase=False, sublinear_tf=True
    )
    analysis = TruncatedSVD(size, random_state=seed).fit(of_tokens.fit_transform(texts))
    vectors = analysis.components_.T * np.sqrt(analysis.singular_values_)
    lengths = np.linalg.norm(vectors, axis=1)
    seen = lengths > 0
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    vectors = (
        vectors[seen] / lengths[seen, None] @ turn[: vectors.shape[1]] * model.config.initializer_range * np.sqrt(size)
    )
    with torch.no_grad():
        embeddings[torch.from_numpy(seen)] = torch.from_numpy(vectors).to(embeddings.dtype)


def format_lessons(
    texts: Sequence[str], program: IntentClassifier, epochs: int, seed: int
) -> Iterator[list[dict[str, str]]]:
    """Messages that teach words and answer format only: every text once an epoch, its label and reasoning drawn
    anew.
    """
    draw = random.Random(seed)
    for _ in range(epochs):
        for text in texts:
            words = re.findall(r"\w+", text)
            named = ", ".join(f'"{word}"' for word in draw.sample(words, min(len(words), 3)))
            yield training_messages(program, text, draw.choice(program.labels), f"The query says {named}.")
