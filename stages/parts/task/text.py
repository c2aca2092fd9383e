"""A query's text as models see it. What people see, and what is kept, stays the user's own.

The same words reach us with no-break spaces, tabs, soft hyphens or curly quotes, depending on the phone and the page
they were copied from. A small student takes each spelling for other tokens, so `normalized` makes them one.

Queries also come from strangers: `readable` is what every model reads of them, in training as in serving, without the
markers of prompts and answers; `safe_text` is what a prompt shows, which can't act as the prompt's own text.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# What shows nothing: Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width and bidirectional characters,
# variation selectors, tags), controls other than whitespace, annotation marks, halves of surrogate pairs.
INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
# What keyboards and word processors put in the place of ' " and -. NFKC leaves most of them, and makes two characters
# of an acute accent that stands for an apostrophe.
TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2035\u02b9\u02bb\u02bc\u00b4\u0060\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u2036\u301d\u301e\u301f\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
        "\u2800": " ",  # a Braille cell without dots
    }
)
# What a parser, or a tokenizer of the Llama, Mistral, Gemma, Qwen, Phi, DeepSeek and GLM families, reads as the end of
# a turn, a field or a reasoning block: [[ ## label ## ]], <|eot_id|> (full-width bars, U+FF5C, are normalised), </s>,
# <end_of_turn>, [INST], </think>.
MARKER = re.compile(
    r"\[\[\s*##\s*\w+\s*##\s*]]|<\|[^|<>]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|"
    r"</?(?:think|thinking|thought|reasoning|reflection|scratchpad)>|"
    r"\[/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|gMASK)]",
    re.IGNORECASE,
)
MARKER_START = re.compile(r"<(?=[|/\w])|\[(?=\[)")


def normalized(text: str) -> str:
    """Return a text as models read it: NFKC, without invisible characters, one blank for each run of whitespace, and
    straight quotes and hyphens. Doing so again changes nothing.
    """
    if not text.isascii():
        # Removed first: an invisible character between a letter and its accent would keep NFKC from joining them.
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text).translate(TYPOGRAPHIC)).translate(TYPOGRAPHIC)
    # a backquote is ASCII, and stands for an apostrophe as often as the acute accent does
    return " ".join(INVISIBLE.sub("", text).replace("`", "'").split())


def readable(text: str) -> str:
    """Return the normalized text without markers. An empty result means that there is nothing to read: no route takes
    such a text, no student answers it.
    """
    return " ".join(MARKER.sub(" ", normalized(text)).split())


def safe_text(query: str, labels: Sequence[str]) -> str:
    """Return the query as prompts show it: it can't end its own turn, write a field of the answer, or name a label the
    way answers do. It is empty if `readable` is.

    Customers write "card arrival", not "card_arrival": names with underscores are dropped like the markers are, and
    shown as words if nothing else is left to read. What is left of a marker inside another is broken up by a blank.
    """
    text = readable(query)
    names = names_in_answers(tuple(labels))
    rest = names.sub(" ", text)
    if not any(character.isalnum() for character in rest):
        rest = names.sub(lambda name: name[0].replace("_", " "), text)
    return " ".join(MARKER_START.sub(r"\g<0> ", rest).split())


@cache
def names_in_answers(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds the names with underscores, the longest first; nothing if there are none."""
    names = [re.escape(label) for label in sorted(labels, key=len, reverse=True) if "_" in label]
    return re.compile("|".join(names) or r"(?!)", re.IGNORECASE)
