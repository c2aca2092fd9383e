"""Exact SFT in which the rows of a batch compute their common prompt prefix once.

A batch becomes one row [prefix, suffix_1, ..., suffix_B] without padding. Positions restart after the prefix for each
suffix, and the attention function registered here lets a suffix see the prefix and itself. Prefix and suffixes then
give the activations, losses and gradients of B separate rows up to rounding, for the linear layers' cost of one prefix
(Prefix Grouper, arXiv 2506.05433, shares only the attention's). The head sees only states that predict a learned token
(TRL's own does so on GPUs only). It needs no change to model or trainer: a collator, and `share_prefix(model)`.

Dropout would be drawn once for the shared prefix instead of once a row: callers use it with dropout 0 only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

SHARED_PREFIX = "shared_prefix"
IGNORED = -100  # a label that carries no loss
# A prefix's states [1, H_kv, P, D] and its suffixes' [H_kv, B, S, D].
PrefixAndSuffixes = tuple[torch.Tensor, torch.Tensor]


def first_learned(row: Mapping[str, Any]) -> int:
    """Where the first token stands that a row learns from; its length where there is none."""
    return next((place for place, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))


def shared_start(sequences: Sequence[list[int]]) -> int:
    """How many leading tokens all sequences share."""
    # in lexical order: what these two share, all between them share
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next(
        (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last))
    )


def common_prefix_length(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many leading tokens all rows share and none learns from, less one (the token that predicts a suffix's first
    is its own).
    """
    unlearned = min(first_learned(row) for row in rows)
    return max(0, min(shared_start([row["input_ids"] for row in rows]), unlearned - 1))


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether all layers are full causal attention for rows of up to `longest` tokens.

    A sliding window that holds such rows whole is (Gemma 3, Mistral). A state or a convolution would leak from one
    suffix into the next; soft caps and sinks are not what `shared_prefix_attention` computes.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    odd = ("attn_logit_softcapping", "sinks", "attention_chunk_size")
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and (not window or longest <= window)
        and not model._is_stateful
        and not any(getattr(config, name, None) for name in odd)
    )


class SharedPrefixCollator:
    """Lays rows of `input_ids` and `labels` (lists of int) out as one row behind their first `prefix_length` tokens.

    Returns input_ids, labels and position_ids of shape [1, P + N] for N suffix tokens in all; `suffix_index` [B, S],
    where in the N each suffix's tokens stand (any beyond its end); the way back, `suffix_places` [N], where in the B x
    S each token stands; and the M learned tokens: `shift_labels` [1, M], and `learned_from` [M], where the states stand
    that predict them.
    """

    def __init__(self, prefix_length: int) -> None:
        self.prefix_length = prefix_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        length = self.prefix_length
        ids = list(rows[0]["input_ids"][:length])
        labels = [IGNORED] * length
        positions = list(range(length))
        suffixes = [row["input_ids"][length:] for row in rows]
        index = torch.zeros(len(rows), max(map(len, suffixes)), dtype=torch.long)
        places: list[int] = []
        for number, (row, suffix) in enumerate(zip(rows, suffixes, strict=True)):
            start = len(ids) - length
            index[number, : len(suffix)] = torch.arange(start, start + len(suffix))
            places += range(number * index.shape[1], number * index.shape[1] + len(suffix))
            ids += suffix
            labels += row["labels"][length:]
            positions += range(length, length + len(suffix))
        learned = [place for place, label in enumerate(labels) if label != IGNORED]
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "suffix_index": index,
            "suffix_places": torch.tensor(places),
            "shift_labels": torch.tensor([[labels[place] for place in learned]]),
            "learned_from": torch.tensor(learned) - 1,
        }


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    suffix_index: torch.Tensor,
    suffix_places: torch.Tensor,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a collated row: query [1, H, P + N, D], key and value [1, H_kv, P + N, D] -> [1, P + N, H, D]."""
    heads, size = query.shape[1], query.shape[3]
    (batch, longest), tokens = suffix_index.shape, len(suffix_places)
    prefix_length = query.shape[2] - tokens

    def apart(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # -> [1, H, P, D], [H, B, S, D]
        prefix, suffixes = states.split([prefix_length, tokens], dim=2)
        return prefix, suffixes[0].index_select(1, suffix_index.flatten()).view(-1, batch, longest, size)

    (query, queries), (key, keys), (value, values) = apart(query), apart(key), apart(value)
    # Padding stands at a suffix's end, where causality hides it from all that counts.
    visible = torch.ones(longest, prefix_length + longest, dtype=torch.bool, device=query.device).tril(prefix_length)
    # PyTorch's kernel for bfloat16 on a CPU takes three times as long to go back as plain products do.
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16
    of_suffixes = (by_products if plain else by_kernel)(queries, (key, keys), (value, values), visible, scaling)
    key, value = (repeat_kv(states, heads // states.shape[1]) for states in (key, value))
    of_prefix = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    in_row = of_suffixes.permute(1, 2, 0, 3).reshape(batch * longest, heads, size).index_select(0, suffix_places)
    return torch.cat([of_prefix[0].transpose(0, 1), in_row])[None], None


def by_kernel(
    queries: torch.Tensor, keys: PrefixAndSuffixes, values: PrefixAndSuffixes, visible: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the suffixes' attention [H, B, S, D] for queries [H, B, S, D], by PyTorch's fused kernel."""

    def whole(parts: PrefixAndSuffixes) -> torch.Tensor:  # -> [B, H, P + S, D]
        prefix, suffixes = parts
        both = torch.cat([prefix.expand(suffixes.shape[1], -1, -1, -1), suffixes.transpose(0, 1)], dim=2)
        return repeat_kv(both, len(queries) // both.shape[1])

    found = scaled_dot_product_attention(
        queries.transpose(0, 1), whole(keys), whole(values), attn_mask=visible, scale=scaling
    )
    return found.transpose(0, 1)


def by_products(
    queries: torch.Tensor, keys: PrefixAndSuffixes, values: PrefixAndSuffixes, visible: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the same from matrix products, in which all suffixes multiply one prefix."""
    (heads, batch, longest, size), groups = queries.shape, len(queries) // len(keys[1])
    (prefix_key, suffix_keys), (prefix_value, suffix_values) = keys, values
    prefix_length = prefix_key.shape[2]
    queries = queries * scaling
    to_prefix = queries.reshape(heads // groups, -1, size) @ prefix_key[0].transpose(1, 2)
    to_suffix = queries @ suffix_keys.repeat_interleave(groups, 0).transpose(2, 3)
    to_suffix = to_suffix.masked_fill(~visible[:, prefix_length:], float("-inf"))
    shares = torch.cat([to_prefix.view(heads, batch, longest, -1), to_suffix], dim=3).softmax(dim=3)
    of_prefix, of_suffix = shares.split([prefix_length, longest], dim=3)
    from_prefix = of_prefix.reshape(heads // groups, -1, prefix_length) @ prefix_value[0]
    return from_prefix.view_as(queries) + of_suffix @ suffix_values.repeat_interleave(groups, 0)


def only_learned(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook on the backbone: of its last states, those that predict a learned token; all of them for other
    batches.
    """
    if "learned_from" in kwargs:
        output.last_hidden_state = output.last_hidden_state.index_select(1, kwargs["learned_from"])
    return output


def share_prefix(model: PreTrainedModel) -> None:
    """Prepare a model for batches of SharedPrefixCollator, until `model.set_attn_implementation` chooses another
    attention.
    """
    model.set_attn_implementation(SHARED_PREFIX)
    backbone = model.base_model
    if only_learned not in backbone._forward_hooks.values():
        backbone.register_forward_hook(only_learned, with_kwargs=True)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
