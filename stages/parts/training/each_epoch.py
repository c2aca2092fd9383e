"""What a training draws anew each epoch: which tokens of a query are missing, and which label of the teacher's
distribution is learned.

Both are drawn from the seed, the epoch and the row itself: a resumed training, or one on several devices, sees the same
rows.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.parts.training.rows import EncodedRow
from stages.parts.training.shared_prefix import IGNORED, first_learned, shared_start

Change = Callable[[EncodedRow, random.Random], EncodedRow]


class EachEpoch(TrainerCallback):
    """A collator before another: applies `changes` to each row first. As a callback it follows the epochs."""

    def __init__(
        self, collate: Callable[[list[EncodedRow]], dict[str, Any]], changes: Sequence[Change], seed: int
    ) -> None:
        self.collate = collate
        self.changes = changes
        self.seed = seed
        self.epoch = 0

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.epoch = round(state.epoch or 0)

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Any]:
        return self.collate([self.changed(row) for row in rows])

    def changed(self, row: EncodedRow) -> EncodedRow:
        draw = random.Random(f"{self.seed} {self.epoch} {row['input_ids']}")
        for change in self.changes:
            row = change(row, draw)
        return row


def query_dropout(share: float, rows: Sequence[EncodedRow]) -> Change:
    """Drops each token of a query with probability `share` (word dropout, Iyyer et al. 2015), but never all of them.

    A prompt's query is what stands between the tokens that all prompts of `rows` begin and end with; those, and the
    answers, stay whole.
    """
    prompts = [row["input_ids"][: first_learned(row)] for row in rows]
    before = shared_start(prompts)
    after = shared_start([prompt[before:][::-1] for prompt in prompts])

    def drop(row: EncodedRow, draw: random.Random) -> EncodedRow:
        ids, end = row["input_ids"], first_learned(row) - after
        kept = [place for place in range(before, end) if draw.random() >= share]
        places = [*range(before), *kept, *range(end, len(ids))] if kept else range(len(ids))
        return {
            **row,
            "input_ids": [ids[place] for place in places],
            "labels": [row["labels"][place] for place in places],
        }

    return drop


def drawn_answers(answers: Sequence[Sequence[int]]) -> Change:
    """Answers a row with one of `answers` (token ids), drawn by the row's `shares` of them."""

    def answer(row: EncodedRow, draw: random.Random) -> EncodedRow:
        start = first_learned(row)
        drawn = draw.choices(answers, weights=row["shares"])[0]
        return {"input_ids": [*row["input_ids"][:start], *drawn], "labels": [IGNORED] * start + [*drawn]}

    return answer
