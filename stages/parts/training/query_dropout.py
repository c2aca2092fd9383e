"""Token dropout on the query: each epoch a row is seen with other tokens of its query missing (word dropout, Iyyer et al. 2015).

The prompt around the query stays whole, and so does the answer. Which tokens are missing is drawn from the seed, the epoch and the row
itself: a resumed training, or one on several devices, sees the same rows.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.parts.training.rows import Row
from stages.parts.training.shared_prefix import first_learned, shared_start


def around_query(rows: Sequence[Row]) -> tuple[int, int]:
    """How many tokens of all prompts are the same at their beginning, and at their end: what stands before the query, and after it."""
    prompts = [row["input_ids"][: first_learned(row)] for row in rows]
    before = shared_start(prompts)
    return before, shared_start([prompt[before:][::-1] for prompt in prompts])


class QueryDropout(TrainerCallback):
    """A collator before another: drops each token between the prompts' first `before` and last `after` with probability `share`.

    As a callback it follows the epochs. A query that would lose all its tokens is left whole.
    """

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]], share: float, seed: int, before: int, after: int) -> None:
        self.collate = collate
        self.share = share
        self.seed = seed
        self.before = before
        self.after = after
        self.epoch = 0

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.epoch = round(state.epoch or 0)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        return self.collate([self.thinned(row) for row in rows])

    def thinned(self, row: Row) -> Row:
        ids = row["input_ids"]
        draw = random.Random(f"{self.seed} {self.epoch} {ids}")
        end = first_learned(row) - self.after
        kept = [place for place in range(self.before, end) if draw.random() >= self.share]
        if not kept:
            return row
        places = [*range(self.before), *kept, *range(end, len(ids))]
        return {"input_ids": [ids[place] for place in places], "labels": [row["labels"][place] for place in places]}
