"""A lesson beside the answers: the state that an answer opens from points where the text's vector does.

It teaches a base what its texts mean and nothing of the task: their vectors are known without any label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel
from trl import SFTTrainer

from stages.parts.training.shared_prefix import SharedPrefixCollator, first_learned

WEIGHT = 3.0  # of one minus the mean cosine, beside the answers' cross-entropy in nats


@dataclass(frozen=True)
class Meanings:
    """Unit vectors [N, D] of texts, and the directions [D, H] in which a model's last states hold their dimensions."""

    vectors: np.ndarray
    directions: np.ndarray


class MeaningsCollator:
    """A collator around that of shared prefixes: adds which text each row is of, `texts` [B], and which of the states
    that predict a learned token stands at its answer's opening, `openings` [B]: the one behind the opening's token.

    Rows name their text by its number: `{"text": [17], ...}`.
    """

    def __init__(self, collate: SharedPrefixCollator) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        learned = [len(row["labels"]) - first_learned(row) for row in rows]
        return {
            **self.collate(rows),
            "texts": torch.tensor([row["text"][0] for row in rows]),
            "openings": torch.tensor([0, *learned[:-1]]).cumsum(0) + 1,
        }


class MeaningsTrainer(SFTTrainer):
    """TRL's trainer with the second lesson: minimises WEIGHT * (1 - cosine) of states and vectors as well."""

    def __init__(self, model: PreTrainedModel, *, meanings: Meanings, **given: Any) -> None:
        super().__init__(model=model, **given)
        self.vectors, self.directions = (
            torch.from_numpy(matrix).float() for matrix in (meanings.vectors, meanings.directions)
        )
        self.states = torch.empty(0)  # the last layer's that predict a learned token [1, M, H]
        model.base_model.register_forward_hook(self.keep_states)

    def keep_states(self, module: torch.nn.Module, given: Any, output: Any) -> None:
        self.states = output.last_hidden_state

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        texts, openings = inputs.pop("texts"), inputs.pop("openings")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        read = self.states[0, openings] @ self.directions.T
        return loss + WEIGHT * (1 - cosine_similarity(read, self.vectors[texts]).mean())
