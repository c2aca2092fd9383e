"""Leaks: texts of one part of the data that are also, or nearly, in another.

Exact: equal but for case, punctuation and what `readable` removes. Near: cosine of at least NEAR between TF-IDF
vectors of character n-grams. On Banking77's own split, pairs of test and training rows from 0.9 on differ in a filler
word or in word order, and 94 % of them have the same label; at 0.8 they are paraphrases that people would write
independently (reports/bench/NOTES.md).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from stages.parts.run.errors import UserError
from stages.parts.run.progress import Progress
from stages.parts.task.text import readable

NEAR = 0.9
ROWS_AT_ONCE = 1000  # of the similarity matrix


def wording(text: str) -> str:
    """Return the words of a text as models read it, case folded; the whole text if it has no words (emoji)."""
    text = readable(text)
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def without_copies(rows: Sequence, of: Sequence[str]) -> list:
    """Return the rows whose text has another wording than every text of `of`."""
    known = {wording(text) for text in of}
    return [row for row in rows if wording(row["text"]) not in known]


def leaks(parts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Return for any two parts, "a-b", how many texts of b are also in a: `exact`, and of the others `near`."""
    texts = {name: [wording(text) for text in part] for name, part in parts.items()}
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectorizer.fit([text for part in texts.values() for text in part])
    vectors = {name: vectorizer.transform(part) for name, part in texts.items() if part}
    found = {}
    for earlier, later in combinations(parts, 2):
        known = set(texts[earlier])
        exact = np.array([text in known for text in texts[later]], bool)
        near = np.zeros(len(exact), bool)
        for start in range(0, len(near) if known else 0, ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            near[some] = (vectors[later][some] @ vectors[earlier].T).max(axis=1).toarray().ravel() >= NEAR
        found[f"{earlier}-{later}"] = {"exact": int(exact.sum()), "near": int((near & ~exact).sum())}
    return found


def refuse_copies(found: Mapping[str, Mapping[str, int]], learned: str) -> None:
    """Raise UserError if a text of the part `learned`, which the student learns from, is scored in another part."""
    for parts, count in found.items():
        if learned in parts.split("-") and count["exact"]:
            raise UserError(
                f"{count['exact']} texts are in both {parts.replace('-', ' and ')}: what is scored must not be "
                f"learned; see data/sft"
            )


def near_duplicates(pool: Sequence[str], labelled: Iterable[str]) -> int:
    """Return how many pool texts have the same set of words as a labelled text (OpenRefine's key collision)."""

    def key(text: str) -> str:
        return " ".join(sorted(set(wording(text).split())))

    known, found = {key(text) for text in labelled}, 0
    with Progress("looking for near-duplicates", len(pool)) as progress:
        for text in pool:
            found += key(text) in known
            progress.update()
    return found
