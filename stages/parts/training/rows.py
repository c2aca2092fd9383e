"""Chat messages as token ids to train on, and what an epoch changes in them: which tokens of a query are missing, and
which label of the teacher's distribution is learned.

Both are drawn from the seed, the epoch and the row itself: a resumed training, or one on several devices, sees the same
rows.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.parts.run.errors import UserError
from stages.parts.training.shared_prefix import IGNORED, first_learned, shared_start

EncodedRow = dict[str, list[int]]
Change = Callable[[EncodedRow, random.Random], EncodedRow]


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> EncodedRow:
    """`input_ids` and `labels` of one chat; the loss is on the last message alone."""
    whole = cast(list[int], tokenizer.apply_chat_template(messages, return_dict=False))
    prompt = cast(
        list[int], tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    )
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the student's chat template writes a prompt differently once the answer follows; choose another student"
        )
    return {"input_ids": whole, "labels": [IGNORED] * len(prompt) + whole[len(prompt) :]}


def cut(rows: Sequence[EncodedRow], length: int) -> list[EncodedRow]:
    """Rows cut to `length` tokens, without those that have nothing left to learn (as TRL does with `max_length`); says
    how many.
    """
    kept = [{**row, **{name: row[name][:length] for name in ("input_ids", "labels")}} for row in rows]
    kept = [row for row in kept if any(label != IGNORED for label in row["labels"])]
    if longer := sum(len(row["input_ids"]) > length for row in rows):
        print(
            f"{longer} rows are longer than the {length} tokens that the model reads: cut, and "
            f"{len(rows) - len(kept)} left out"
        )
    if not kept:
        raise UserError(
            f"no row's answer lies within the {length} tokens that the student reads: shorten the instructions or "
            f"the texts"
        )
    return kept


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
