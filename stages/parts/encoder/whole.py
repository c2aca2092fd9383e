"""The encoder trained whole, with the head on its vectors: `encoder.train: whole`.

Starts from the pretrained weights and the head that fits their vectors, and minimises the cross-entropy against the
rows' distributions. Rows of a step have like lengths, so that little padding is computed.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.export import Pooled, read_encoder
from stages.parts.encoder.student import Head
from stages.parts.run.progress import Progress

EPOCHS, BATCH = 3, 32
RATE, HEAD_RATE, WARM_UP, WEIGHT_DECAY = 1e-4, 1e-2, 0.06, 0.01
BUCKET = 8  # batches whose rows are sorted by length together


class WithHead(torch.nn.Module):
    """An encoder, and the head's logits for its vectors."""

    mean: torch.Tensor

    def __init__(self, encoder: Pooled, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(head.mean))
        self.weights, self.bias = (torch.nn.Parameter(torch.tensor(part)) for part in (head.weights, head.bias))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits [N, K] for token numbers and mask [N, T]."""
        moved = self.encoder(input_ids, attention_mask) - self.mean
        return torch.nn.functional.normalize(moved, dim=-1) @ self.weights + self.bias

    def head(self) -> Head:
        weights, bias = (part.detach().numpy() for part in (self.weights, self.bias))
        return Head(self.mean.numpy(), weights, bias)


def batches(lengths: Sequence[int], draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield row numbers, BATCH at a time, in random order but with like lengths side by side."""
    order = draw.permutation(len(lengths))
    groups: list[np.ndarray] = []
    for start in range(0, len(order), BATCH * BUCKET):
        rows = order[start : start + BATCH * BUCKET]
        rows = rows[np.argsort(np.array(lengths)[rows], kind="stable")]
        groups += [rows[place : place + BATCH] for place in range(0, len(rows), BATCH)]
    for number in draw.permutation(len(groups)):
        yield groups[number]


def train_whole(
    source: Path, frozen: Encoder, head: Head, texts: Sequence[str], targets: np.ndarray, seed: int
) -> tuple[Pooled, Head]:
    """Return the encoder in `source` and the head of its vectors, both trained on texts with distributions `targets`
    [N, K].

    `frozen` is the exported encoder, whose tokens the student will read.
    """
    torch.manual_seed(seed)
    encoder, tokenizer = read_encoder(source)
    model = WithHead(encoder, head).train()
    rows = [frozen.tokens(text) for text in texts]
    wanted = torch.tensor(targets, dtype=torch.float32)
    lengths, steps = [len(row) for row in rows], EPOCHS * math.ceil(len(rows) / BATCH)
    optimiser = torch.optim.AdamW(
        [
            {"params": model.encoder.parameters(), "lr": RATE, "weight_decay": WEIGHT_DECAY},
            {"params": [model.weights, model.bias], "lr": HEAD_RATE, "weight_decay": 0.0},
        ]
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, int(WARM_UP * steps), steps)
    draw = np.random.default_rng(seed)
    with Progress("training the encoder", EPOCHS * len(rows)) as progress:
        for _ in range(EPOCHS):
            for numbers in batches(lengths, draw):
                batch = tokenizer.pad({"input_ids": [rows[number] for number in numbers]}, return_tensors="pt")
                logits = model(batch["input_ids"], batch["attention_mask"])
                loss = torch.nn.functional.cross_entropy(logits, wanted[numbers])
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                progress.update(len(numbers))
    return model.encoder.eval(), model.head()
