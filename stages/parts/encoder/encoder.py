"""Texts in, unit vectors out: an exported encoder. This needs onnxruntime, tokenizers and numpy alone.

Texts are computed one at a time, side by side on all cores. int8 scales activations by what it sees in a request, so
in a batch a text's vector would depend on its neighbours; alone it is the same in every stage and in the service. No
token of padding is computed either: one at a time is 70 % of the speed of batches of 16 texts of equal length.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stages.parts.task.text import readable

MODEL, TOKENIZER, DESCRIPTION = "encoder.onnx", "tokenizer.json", "encoder.json"
PIECE = 16  # texts that a thread takes at a time


class Encoder:
    """An exported encoder: `vectors` of texts, `size` numbers each."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self.prompt: str = description["prompt"]
        self.size: int = description["size"]
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(description["max_tokens"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # parallel over texts, not inside one
        self.session = onnxruntime.InferenceSession(
            folder / MODEL,
            options,
            providers=["CPUExecutionProvider"],
            # fused, addition and norm take three times as long as one after the other
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self.workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "encoder")

    def tokens(self, text: str) -> list[int]:
        """Return a text's token numbers, with the model's prompt before it."""
        return self.tokenizer.encode(self.prompt + readable(text)).ids

    def run(self, texts: Sequence[str]) -> list[list[np.ndarray]]:
        """Return the graph's outputs for each text, the first its unit vector [1, D]: PIECE texts at a time on all
        cores, fewer in the caller's thread, which in the service is one of several.
        """
        if len(texts) <= PIECE:
            return [self.session.run(None, {"input_ids": np.array([self.tokens(text)], np.int64)}) for text in texts]
        pieces = [texts[start : start + PIECE] for start in range(0, len(texts), PIECE)]
        return [outputs for found in self.workers.map(self.run, pieces) for outputs in found]

    def vectors(self, texts: Iterable[str]) -> np.ndarray:
        """Return the texts' unit vectors [N, D], float32."""
        found = [outputs[0][0] for outputs in self.run(list(texts))]
        return np.stack(found) if found else np.empty((0, self.size), np.float32)


def centred(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return unit vectors [N, D] without their common direction: texts of one domain lie close together otherwise."""
    moved = vectors - mean
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)
