"""A model by the conventions of sentence-transformers as one ONNX graph: token numbers in, unit vectors out."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from stages.parts.encoder.encoder import DESCRIPTION, MODEL, TOKENIZER
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json

Pooling = Literal["mean", "cls", "lasttoken"]
LONGEST = 8192  # tokens, of models that name no limit


def read_json_if_there(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def pooling_of(folder: Path) -> Pooling:
    """Return how token vectors become one, mean if no file says; raises UserError for other ways."""
    settings = read_json_if_there(folder / "1_Pooling/config.json")
    modes = {key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in settings if
             key.startswith("pooling_mode_") and settings[key]}  # fmt: skip
    if isinstance(settings.get("pooling_mode"), str):  # as of sentence-transformers 5
        modes = {settings["pooling_mode"]}
    match sorted(modes):
        case [] | ["mean"]:
            return "mean"
        case ["cls"]:
            return "cls"
        case ["lasttoken"]:
            return "lasttoken"
    raise UserError(f"{folder}/1_Pooling/config.json wants {', '.join(sorted(modes))}: choose an encoder with one of "
                    f"mean, cls and lasttoken")  # fmt: skip


def prompt_of(folder: Path) -> str:
    """Return what the model puts before each text by default: usually nothing."""
    settings = read_json_if_there(folder / "config_sentence_transformers.json")
    return settings.get("prompts", {}).get(settings.get("default_prompt_name") or "", "")


def max_tokens_of(folder: Path, model: PreTrainedModel, tokenizer: Any) -> int:
    """Return the longest input, special tokens included: the smallest of what the model's files name."""
    positions = getattr(model.config, "max_position_embeddings", LONGEST)
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # their positions start after the padding token's number
    named = read_json_if_there(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(positions, tokenizer.model_max_length, named or LONGEST, LONGEST)


class Pooled(torch.nn.Module):
    """The model with pooling and normalisation, which every use of it wants."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return unit vectors [N, D] for token numbers and mask [N, T]; without a mask nothing is padding."""
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return torch.nn.functional.normalize(self.pooled(tokens, attention_mask), dim=-1)

    def pooled(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return one vector [N, D] of each text's token vectors [N, T, D]."""
        if self.pooling == "cls":
            return tokens[:, 0]
        if attention_mask is None:
            return tokens.mean(1) if self.pooling == "mean" else tokens[:, -1]
        mask = attention_mask[..., None].to(tokens.dtype)
        if self.pooling == "mean":
            return (tokens * mask).sum(1) / mask.sum(1)
        # padding is on the right
        return (tokens * (mask * (torch.cumsum(mask, 1) == mask.sum(1, keepdim=True)))).sum(1)


def read_encoder(source: Path) -> tuple[Pooled, Any]:
    """Return a sentence encoder and its tokenizer; raises UserError for models that can't be read or exported."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Eager: the plain attention that every exporter knows. Its layers are too short for another to be faster.
        model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{source} is no encoder that transformers reads ({' '.join(str(error).split())[:200]})"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{source} has no tokenizer.json: choose an encoder with a fast tokenizer")
    return Pooled(model, pooling_of(source)), tokenizer


def export_encoder(
    source: Path,
    folder: Path,
    precision: Literal["int8", "float32"],
    prompt: str | None,
    trained: Pooled | None = None,
) -> None:
    """Write a sentence encoder's graph, tokenizer and description; int8 quantises weights by column.

    `trained` has other weights than `source` names. Raises UserError for models that can't be read or exported.
    """
    encoder, tokenizer = read_encoder(source)
    encoder = trained or encoder
    write_graph(encoder, tokenizer("a text", return_tensors="pt")["input_ids"], folder / MODEL, precision)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    write_json(
        folder / DESCRIPTION,
        {
            "size": encoder.model.config.hidden_size,
            "max_tokens": max_tokens_of(source, encoder.model, tokenizer),
            "prompt": prompt_of(source) if prompt is None else prompt,
        },
    )


def write_graph(module: torch.nn.Module, example: torch.Tensor, file: Path, precision: str) -> None:
    """Export a module of token numbers [1, T], such as `example`, to ONNX; with int8 its matrices have 7 bits a weight.

    One text at a time has no padding, so the graph has no mask. Seven bits, since processors without VNNI add pairs of
    8-bit products in 16 bits, and saturate: the same vectors everywhere are worth the bit.
    """
    with TemporaryDirectory(dir=file.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a page on deprecation and traced constants; tests compare the vectors
        plain = Path(scratch) / "plain.onnx"
        # The exporter through TorchScript: two seconds where torch.export takes eleven and wants two more packages.
        torch.onnx.export(
            module,
            (example,),
            plain,
            input_names=["input_ids"],
            output_names=["vectors"],
            dynamic_axes={"input_ids": {1: "tokens"}},
            opset_version=18,
            dynamo=False,
        )
        if precision == "float32":
            plain.rename(file)
            return
        quantize_dynamic(plain, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
