"""The terms that linear models count: words, pairs of words, and runs of characters within words.

scikit-learn's vectorizers count the same (features.py); the linear student is served without it.
"""

import re
from itertools import pairwise

from stages.parts.task.text import readable

WORD = re.compile(r"\b\w\w+\b")
# Thai, Lao, Tibetan, Burmese and Khmer; kana, and Han characters. Korean has blanks between words.
UNSPACED = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3031-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]+"
)
RUN = re.compile(f"{UNSPACED.pattern}|[^{UNSPACED.pattern[1:-2]}]+")


def lower_case(text: str) -> str:
    """Return what vectorizers see of a text: what language models see of it, in lower case."""
    return readable(text).lower()


def tokens(text: str) -> list[str]:
    """Return the words of a text, at least one for a text that is not blank.

    Words have two letters or more, as scikit-learn's. Scripts without blanks between words count by overlapping pairs
    of characters, as in Lucene's CJK analyser. A text with neither, such as emoji alone, counts by characters.
    """
    if text.isascii():
        found = WORD.findall(text)
    else:
        found = []
        for run in RUN.findall(text):
            if UNSPACED.match(run):
                found += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
            else:
                found += WORD.findall(run)
    return found or [character for character in text if not character.isspace()]


def word_terms(text: str) -> list[str]:
    """Return the words of a lower-case text and its pairs of words: scikit-learn's n-grams of 1 and 2 `tokens`."""
    found = tokens(text)
    return [*found, *map(" ".join, pairwise(found))]


def character_terms(text: str) -> list[str]:
    """Return the runs of 2 to 5 characters within a lower-case text's words: scikit-learn's analyzer `char_wb`."""
    terms = []
    for word in text.split():
        padded = f" {word} "
        for length in range(2, 6):
            terms += [padded[place : place + length] for place in range(max(1, len(padded) - length + 1))]
            if length >= len(padded):  # a short word counts once as a whole
                break
    return terms
