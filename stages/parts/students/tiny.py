"""A tiny Llama built from nothing: the embedded profile's student.

Its base weights know what the texts mean and the shape of an answer, but not the task: they start as a bag of tokens
that adds up to a text's vector, and learn that vector and a label drawn at random (and random words of the text as
reasoning), so accuracy stays at chance. Without the answer format in the base, LoRA has nothing to build on: label and
format tokens never get useful embeddings.
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

from stages.parts.encoder.encoder import centred
from stages.parts.run.params import TinyStudentSettings
from stages.parts.task.program import IntentClassifier, training_messages

MAX_POSITIONS = 4096
HEAD_SIZE = 32
FINAL_NORM = 4.0  # where the last norm's weights start. At 1, small tied embeddings bound the logits
RIDGE = 3.0  # of the regression of texts' vectors on tokens
SAME_FOR_ALL = 2.0  # length of the dimension that all tokens share, in lengths of a typical token's own
PASSED_ON = 10.0  # length of what attention passes on, in lengths of an embedding
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


def start_as_bag_of_tokens(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    vectors: np.ndarray | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Make an untrained model hold, behind a text, about what the sum of the text's token vectors says of its meaning.

    Token vectors are a ridge regression of the texts' `vectors` [N, D] (an encoder's; None: latent semantic analysis)
    on their TF-IDF weighted tokens, turned at random so that no few dimensions carry all. One dimension is the same for
    all tokens, so that short vectors stay short through the layers' norms. The first layer's attention starts even, and
    passes on what it sees.

    Returns the texts' unit vectors [N, D], without their common direction, and the directions [D, H] of their
    dimensions in the model. Before any training, a classifier on the states of the sample's texts gets 78 % this way,
    and 49 % with random layers on tokens that start from latent semantic analysis.
    """
    embeddings, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    size, spread = embeddings.shape[1], model.config.initializer_range
    of_tokens = TfidfVectorizer(
        analyzer=tokenizer.tokenize, vocabulary=tokenizer.get_vocab(), lowercase=False, sublinear_tf=True
    )
    bags = of_tokens.fit_transform(texts)
    if vectors is None:
        vectors = TruncatedSVD(size, random_state=seed).fit_transform(bags)
    vectors = centred(vectors, vectors.mean(axis=0))
    texts_with = bags.getnnz(axis=0)
    seen = np.flatnonzero(texts_with)
    bags = bags[:, seen]
    gram = (bags.T @ bags).toarray()
    regression = np.linalg.solve(gram + RIDGE * np.eye(len(seen)), bags.T @ vectors)
    mean = np.asarray(bags.mean(axis=0)) @ regression
    covariance = regression.T @ gram @ regression / len(texts) - mean.T @ mean
    main = np.linalg.eigh(covariance)[1][:, ::-1][:, : size - 1]

    draw = np.random.default_rng(seed)
    turn, mixing = (np.linalg.qr(draw.normal(size=(size, size)))[0] for _ in range(2))
    in_model = turn[: main.shape[1]]
    tokens = of_tokens.idf_[seen, None] * regression @ main
    typical = np.average(np.linalg.norm(tokens, axis=1), weights=texts_with[seen])
    tokens = tokens / typical @ in_model + SAME_FOR_ALL * turn[-1]
    tokens *= spread * np.sqrt(size) / np.hypot(1, SAME_FOR_ALL)
    with torch.no_grad():
        embeddings[torch.from_numpy(seen)] = torch.from_numpy(tokens).to(embeddings.dtype)
        attention.v_proj.weight.copy_(torch.from_numpy(mixing))
        attention.o_proj.weight.copy_(torch.from_numpy(PASSED_ON * spread * mixing.T))
    return vectors, main @ in_model


def hold_words(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
    """Keep the vectors of the texts' tokens as they are in a training: it would soon forget what they say, since an
    optimiser's step is as large for a rare token as for a frequent one. Labels' and the format's tokens learn.
    """
    learned = torch.ones(len(tokenizer), 1)
    learned[
        sorted({token for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in ids})
    ] = 0
    model.model.embed_tokens.weight.register_hook(lambda gradient: gradient * learned)


def format_lessons(
    texts: Sequence[str], program: IntentClassifier, epochs: int, seed: int
) -> Iterator[list[dict[str, str]]]:
    """Messages that teach the form of answers only: every text once an epoch, its label and reasoning drawn anew."""
    draw = random.Random(seed)
    for _ in range(epochs):
        for text in texts:
            words = re.findall(r"\w+", text)
            named = ", ".join(f'"{word}"' for word in draw.sample(words, min(len(words), 3)))
            yield training_messages(program, text, draw.choice(program.labels), f"The query says {named}.")
