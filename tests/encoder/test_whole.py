"""The encoder trained whole: it learns what a head on its frozen vectors can't, and the file answers as it does."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.export import export_encoder
from stages.parts.encoder.head import fit_head
from stages.parts.encoder.student import read_student, write_student
from stages.parts.encoder.whole import BATCH, batches, train_whole
from tests.encoder.test_encoder import SIZES, WORDS, sentence_model


def spread_out(source: Path) -> Path:
    """Bring a random encoder's vectors apart, as a pretrained one's are: training moves all of them a little."""
    model = AutoModel.from_pretrained(source)
    for name, weight in model.named_parameters():
        if "LayerNorm" in name:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
    model.save_pretrained(source)
    return source


def texts_of_both_or_neither(count: int) -> tuple[list[str], np.ndarray]:
    """Texts, and of which of two classes: whether "card" and "cash" are both in it or neither. No plane of a mean of
    words' vectors tells these apart.
    """
    draw = np.random.default_rng(0)
    card, cash = draw.integers(0, 2, (2, count))
    texts = []
    for first, second in zip(card, cash, strict=True):
        found = [*draw.choice(WORDS[2:8], 3), *["card"] * first, *["cash"] * second]
        texts.append(" ".join(draw.permutation(found)))
    return texts, (card == cash).astype(int)


def test_whole_weights_learn_more_than_a_head_on_frozen_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.parts.encoder.whole.EPOCHS", 8)
    monkeypatch.setattr("stages.parts.encoder.whole.RATE", 1e-3)  # for weights that have learned nothing yet
    source = spread_out(sentence_model(tmp_path / "source", BertConfig(**SIZES)))
    plain, student = tmp_path / "plain", tmp_path / "student"
    plain.mkdir()
    export_encoder(source, plain, "float32", None)
    frozen = Encoder(plain)
    texts, classes = texts_of_both_or_neither(640)
    vectors, targets = frozen.vectors(texts), np.eye(2)[classes]
    head = fit_head(vectors[:512], targets[:512], vectors.mean(axis=0))
    trained, tuned = train_whole(source, frozen, head, texts[:512], targets[:512], seed=0)

    def loss(probabilities: np.ndarray) -> float:
        return -np.log(probabilities[np.arange(128), classes[512:]]).mean()

    export_encoder(source, plain, "float32", None, trained)
    write_student(plain, tuned, vectors, ["one", "both_or_neither"], student)
    served = read_student(student)
    assert served
    found = served.read(texts[512:]).probabilities
    assert loss(found) < loss(head.probabilities(vectors[512:])) / 5
    ids = PreTrainedTokenizerFast.from_pretrained(source)(texts[512], return_tensors="pt")
    with torch.inference_mode():
        vector = trained(ids["input_ids"], ids["attention_mask"]).numpy()
    assert np.allclose(found[0], tuned.probabilities(vector)[0], atol=1e-4)


def test_each_row_is_in_one_batch_of_like_lengths():
    lengths = list(np.random.default_rng(0).integers(3, 60, 1_000))
    found = list(batches(lengths, np.random.default_rng(1)))
    assert sorted(np.concatenate(found)) == list(range(1_000)) and max(map(len, found)) == BATCH
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in found)
    assert padded < 1.2 * sum(lengths)
