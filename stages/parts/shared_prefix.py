"""Exact SFT in which the rows of a batch compute their common prompt prefix once.

A batch becomes one row [prefix, suffix_1, ..., suffix_B] without padding. Positions restart after the prefix for each suffix, and the
attention function registered here lets a suffix see the prefix and itself. Prefix and suffixes then give the activations, losses and
gradients of B separate rows up to rounding, for the linear layers' cost of one prefix (Prefix Grouper, arXiv 2506.05433, shares only
the attention's). It needs no change to model or trainer: a collator, and `model.set_attn_implementation(SHARED_PREFIX)`.

Dropout would be drawn once for the shared prefix instead of once a row: callers use it with dropout 0 only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

SHARED_PREFIX = "shared_prefix"
IGNORED = -100  # a label that carries no loss


def common_prefix_length(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many leading tokens all rows share and none learns from, less one (the token that predicts a suffix's first is its own)."""
    unlearned = min(next((i for i, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"])) for row in rows)
    ids = [row["input_ids"] for row in rows]
    first, last = min(ids), max(ids)  # in lexical order: what these two share, all between them share
    shared = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))
    return max(0, min(shared, unlearned - 1))


class SharedPrefixCollator:
    """Lays rows of `input_ids` and `labels` (lists of int) out as one row behind their first `prefix_length` tokens.

    Returns input_ids, labels and position_ids of shape [1, P + N] for N suffix tokens in all, and `suffix_index` of shape [B, S]: where
    in the N each suffix's tokens stand, -1 beyond its end.
    """

    def __init__(self, prefix_length: int) -> None:
        self.prefix_length = prefix_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        length = self.prefix_length
        ids = list(rows[0]["input_ids"][:length])
        labels = [IGNORED] * length
        positions = list(range(length))
        suffixes = [row["input_ids"][length:] for row in rows]
        index = torch.full((len(rows), max(map(len, suffixes))), -1)
        for number, (row, suffix) in enumerate(zip(rows, suffixes, strict=True)):
            start = len(ids) - length
            index[number, : len(suffix)] = torch.arange(start, start + len(suffix))
            ids += suffix
            labels += row["labels"][length:]
            positions += range(length, length + len(suffix))
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "suffix_index": index,
        }


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    suffix_index: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a collated row: query [1, H, P + N, D], key and value [1, H_kv, P + N, D] -> [1, P + N, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    present = suffix_index >= 0
    batch, longest = suffix_index.shape
    prefix_length = query.shape[2] - int(present.sum())

    def prefix(states: torch.Tensor) -> torch.Tensor:
        return states[:, :, :prefix_length]

    def suffixes(states: torch.Tensor) -> torch.Tensor:  # -> [B, H, S, D]
        return states[0, :, prefix_length:][:, suffix_index.clamp(min=0)].transpose(0, 1)

    def behind_prefix(states: torch.Tensor) -> torch.Tensor:  # -> [B, H, P + S, D]
        return torch.cat([prefix(states).expand(batch, -1, -1, -1), suffixes(states)], dim=2)

    # Padding stands at a suffix's end, where causality hides it from all that counts.
    visible = torch.ones(longest, prefix_length + longest, dtype=torch.bool, device=query.device).tril(prefix_length)
    of_suffixes = scaled_dot_product_attention(
        suffixes(query), behind_prefix(key), behind_prefix(value), attn_mask=visible, dropout_p=dropout, scale=scaling
    )
    of_prefix = scaled_dot_product_attention(prefix(query), prefix(key), prefix(value), is_causal=True, dropout_p=dropout, scale=scaling)
    return torch.cat([of_prefix[0].transpose(0, 1), of_suffixes.transpose(1, 2)[present]])[None], None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
