"""The exported encoder against transformers and sentence-transformers' conventions, on random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    set_seed,
)

from stages.parts.encoder.encoder import PIECE, Encoder
from stages.parts.encoder.export import export_encoder, read_encoder
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json

WORDS = "my card was declined at the shop where is a new one i ordered cash query :".split()
TEXTS = ["My card was declined at the shop", "where is a new one", "cash", "<|eot_id|>where\u00a0is  a new one"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": len(WORDS) + 4,
    "pad_token_id": 0,
}


def sentence_model(folder: Path, config: object, pooling: str = "mean") -> Path:
    """Write a random encoder as sentence-transformers keeps one."""
    set_seed(0)
    model = AutoModel.from_config(config)
    for weight in model.parameters():  # the initial weights are so small that all texts look alike
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken", "max": "max_tokens"}
    write_json(
        folder / "1_Pooling/config.json",
        {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()} | {"word_embedding_dimension": 32},
    )
    return folder


def reference(folder: Path, text: str, pooling: str) -> np.ndarray:
    """What transformers computes for a text alone."""
    model = AutoModel.from_pretrained(folder).eval()
    inputs = PreTrainedTokenizerFast.from_pretrained(folder)(text, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        tokens = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[0]
    vector = {"mean": tokens.mean(0), "cls": tokens[0], "lasttoken": tokens[-1]}[pooling]
    return (vector / vector.norm()).numpy()


def exported(source: Path, folder: Path, precision: str = "float32", prompt: str | None = None) -> Encoder:
    folder.mkdir()
    export_encoder(source, folder, precision, prompt)
    return Encoder(folder)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (BertConfig(**SIZES), "mean"),
        (BertConfig(**SIZES), "cls"),
        (BertConfig(**SIZES), "lasttoken"),
        (XLMRobertaConfig(**SIZES, max_position_embeddings=20), "mean"),
        (MPNetConfig(**SIZES, max_position_embeddings=20), "mean"),
        (ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2), "cls"),
    ],
    ids=["bert-mean", "bert-cls", "bert-lasttoken", "xlm-roberta", "mpnet", "modernbert"],
)
def test_vectors_are_those_of_transformers(tmp_path, config, pooling):
    source = sentence_model(tmp_path / "model", config, pooling)
    found = exported(source, tmp_path / "onnx").vectors(TEXTS)
    for vector, text in zip(found[:3], TEXTS, strict=False):
        np.testing.assert_allclose(vector, reference(source, text, pooling), atol=1e-5)
    np.testing.assert_array_equal(found[1], found[3])  # blanks that nobody sees, and markers


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_padding_changes_no_vector_in_training(tmp_path, pooling):
    encoder, tokenizer = read_encoder(sentence_model(tmp_path, BertConfig(**SIZES), pooling))
    padded = tokenizer(TEXTS[:3], return_tensors="pt", padding=True)
    with torch.inference_mode():
        found = encoder(padded["input_ids"], padded["attention_mask"]).numpy()
    for vector, text in zip(found, TEXTS, strict=False):
        np.testing.assert_allclose(vector, reference(tmp_path, text, pooling), atol=1e-5)


def test_int8_is_close_and_a_text_has_the_same_vector_in_any_company(tmp_path):
    source = sentence_model(tmp_path / "model", BertConfig(**SIZES))
    encoder = exported(source, tmp_path / "onnx", "int8")
    found = encoder.vectors(TEXTS)
    assert (found[0] @ reference(source, TEXTS[0], "mean")) > 0.98
    np.testing.assert_array_equal(encoder.vectors([TEXTS[1]])[0], found[1])
    np.testing.assert_array_equal(encoder.vectors(TEXTS * PIECE), np.tile(found, (PIECE, 1)))  # on all cores, in order
    assert encoder.vectors([]).shape == (0, 32)


def test_prompts_and_limits_are_the_models_own_unless_params_name_them(tmp_path):
    source = sentence_model(tmp_path / "model", BertConfig(**SIZES))
    conventions = {"prompts": {"query": "query : "}, "default_prompt_name": "query"}
    write_json(source / "config_sentence_transformers.json", conventions)
    write_json(source / "sentence_bert_config.json", {"max_seq_length": 4})
    found = exported(source, tmp_path / "own").vectors(["cash card"])
    limited = PreTrainedTokenizerFast.from_pretrained(source)("query : cash card", truncation=True, max_length=4)
    assert limited["input_ids"][-1] == 2, "what is cut still ends as texts do"
    np.testing.assert_allclose(found[0], reference(source, "query :", "mean"), atol=1e-5)
    named = exported(source, tmp_path / "named", prompt="").vectors(["cash card"])
    np.testing.assert_allclose(named[0], reference(source, "cash card", "mean"), atol=1e-5)


def test_what_is_no_sentence_encoder_is_one_line(tmp_path):
    source = sentence_model(tmp_path / "model", BertConfig(**SIZES), "max")
    with pytest.raises(UserError, match="wants max: choose an encoder with one of mean, cls and lasttoken"):
        exported(source, tmp_path / "onnx")
    (source / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no encoder that transformers reads"):
        export_encoder(source, tmp_path, "float32", None)
