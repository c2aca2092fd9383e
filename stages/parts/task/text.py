"""Queries come from strangers: what a prompt shows of them can't act as the prompt's own text."""

import re
from collections.abc import Sequence
from functools import cache

# Control characters, what shows nothing but joins or turns letters (U+200D stays: emoji need it), halves of surrogate
# pairs.
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
# What a parser, or a tokenizer of the Llama, Mistral, Gemma, Qwen, Phi, DeepSeek and GLM families, reads as the end of
# a turn or a field: [[ ## label ## ]], <|eot_id|> (also with full-width bars, U+FF5C), </s>, <end_of_turn>, [INST].
MARKER = re.compile(
    r"\[\[ ## \w+ ## ]]|<[|\uff5c][^|\uff5c<>]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|"
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|gMASK)]"
)
MARKER_START = re.compile(r"<(?=[|\uff5c/\w])|\[(?=\[)")


def safe_text(query: str, labels: Sequence[str]) -> str:
    """The query as prompts show it: it can't end its own turn, write a field of the answer, or name a label the way
    answers do.

    Customers write "card arrival", not "card_arrival": names with underscores are dropped like the markers are. What is
    left of a marker inside another is broken up by a blank.
    """
    text = MARKER.sub(" ", UNPRINTABLE.sub(" ", query))
    return MARKER_START.sub(r"\g<0> ", names_in_answers(tuple(labels)).sub(" ", text))


@cache
def names_in_answers(labels: tuple[str, ...]) -> re.Pattern[str]:
    """What finds the names with underscores, the longest first; nothing where there are none."""
    names = [re.escape(label) for label in sorted(labels, key=len, reverse=True) if "_" in label]
    return re.compile("|".join(names) or r"(?!)", re.IGNORECASE)
