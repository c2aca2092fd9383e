"""Chat messages as token ids to train on."""

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from stages.parts.run.errors import UserError
from stages.parts.training.shared_prefix import IGNORED

EncodedRow = dict[str, list[int]]


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt_too: bool = False
) -> EncodedRow:
    """`input_ids` and `labels` of one chat; the loss is on the last message alone, or on the user's too with
    `prompt_too`.
    """
    whole = cast(list[int], tokenizer.apply_chat_template(messages, return_dict=False))
    learned_from = messages[:-2] if prompt_too else messages[:-1]
    prompt = cast(
        list[int], tokenizer.apply_chat_template(learned_from, add_generation_prompt=not prompt_too, return_dict=False)
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
