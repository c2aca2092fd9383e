"""Chat templates that don't change by the day."""

from pathlib import Path

from transformers import AutoTokenizer

from stages.parts.run.errors import UserError

# Templates print `date_string` where it is set and ask the clock where it is not; the clock is taken away too, for
# those that only ask it.
FIXED_DATE = '{%- set date_string = "26 Jul 2024" %}{%- macro strftime_now(form) %}26 Jul 2024{%- endmacro %}'


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
