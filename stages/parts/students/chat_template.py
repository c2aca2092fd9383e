"""A hub student's chat template: it doesn't change by the day, and training and serving send the same tokens."""

from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.parts.run.errors import UserError
from stages.parts.task.program import IntentClassifier, predictor, training_messages
from stages.parts.task.prompt import StudentFormat

# Templates print `date_string` where it is set and ask the clock where it is not; the clock is taken away too, for
# those that only ask it.
FIXED_DATE = '{%- set date_string = "26 Jul 2024" %}{%- macro strftime_now(form) %}26 Jul 2024{%- endmacro %}'
QUERY = "Where is my card?"
# Beginnings that tokenizers like to join with what stands before them.
REASONINGS = (
    "The query says so.",
    '"card" is named.',
    "(It waits.)",
    "2 days have passed.",
    "]] ends.",
    "¿Dónde?",
    "卡",
)


def freeze_date(folder: Path) -> None:
    """Fix the day that a chat template writes into the system prompt, in a snapshot's own files.

    Llama 3.2's template prints today's date: tomorrow's prompts would differ from those that the student was trained
    on.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder} has no chat template: choose an instruction-tuned student")
    if "strftime_now" in tokenizer.chat_template:
        tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
        tokenizer.save_pretrained(folder)


def continued_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens of a prompt whose last message the engine continues, as engines make them."""
    return cast(list[int], tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False))


def check_template(tokenizer: PreTrainedTokenizerBase, program: IntentClassifier, name: str) -> None:
    """Raise UserError unless the tokens of a served prompt begin the tokens of every training row, for each label and
    for reasoning that begins in odd ways.

    Otherwise the student would be asked to go on from tokens that it was never trained to go on from. An answer that is
    held to the labels hides that: it costs accuracy and looks valid.
    """
    student, wanted = StudentFormat(), predictor(program).signature
    try:
        prompt = continued_ids(tokenizer, student.format(wanted, [], {"query": QUERY}))
    except Exception as error:  # templates raise what they like
        raise UserError(
            f"{name}: its chat template can't continue an answer ({error}): choose another student"
        ) from None
    rows = [(label, REASONINGS[0]) for label in program.labels]
    rows += [(program.labels[0], reasoning) for reasoning in REASONINGS]
    for label, reasoning in rows:
        messages = training_messages(program, QUERY, label, reasoning)
        row = cast(list[int], tokenizer.apply_chat_template(messages, return_dict=False))
        if row[: len(prompt)] != prompt:
            place = next(number for number, token in enumerate(prompt) if row[number : number + 1] != [token])
            trained, served = (tokenizer.decode(ids[place : place + 1]) for ids in (row, prompt))
            raise UserError(
                f"{name}: token {place} of a prompt is {served!r} when served and {trained!r} in a training row for "
                f"{label}: its chat template or its tokenizer can't continue an answer; choose another student"
            )
        held = messages[-1]["content"].removeprefix(student.opening(wanted))
        # as this tokenizer reads it: the tiny student's has no capitals
        continued = [*prompt, *tokenizer(held, add_special_tokens=False)["input_ids"]]
        held, learned = (str(tokenizer.decode(ids))[len(str(tokenizer.decode(prompt))) :] for ids in (continued, row))
        if not learned.startswith(held):
            raise UserError(
                f"{name}: a training row for {label} goes on with {learned[: len(held)]!r} after the prompt, and the "
                f"served answer is held to {held!r}: its chat template changes answers; choose another student"
            )
