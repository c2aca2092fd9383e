"""Leaks between parts: which texts count as the same, and that the count stops a run."""

import pytest

from stages.parts.data.leaks import leaks, refuse_copies, without_copies
from stages.parts.run.errors import UserError

FILLER = [
    "my card has not come yet",
    "how do I change my pin",
    "the exchange rate was wrong",
    "someone took money from my account",
]


def test_case_punctuation_and_unicode_forms_do_not_hide_a_copy():
    parts = {
        "sft": ["My card got DECLINED!!", "ﬁne, thanks", *FILLER],
        "test": ["my card  got declined", "Fine thanks.", "what is a disposable card"],
    }
    assert leaks(parts) == {"sft-test": {"exact": 2, "near": 0}}
    rows = [{"text": text} for text in parts["sft"]]
    assert [row["text"] for row in without_copies(rows, parts["test"])] == FILLER


def test_texts_without_a_word_are_themselves():
    assert leaks({"sft": ["💳", "??", *FILLER], "test": ["💳", "🙂", "!"]})["sft-test"]["exact"] == 1


def test_a_filler_word_is_near_and_a_paraphrase_is_not():
    said = "Why has my card payment been declined at the supermarket today"
    near, paraphrase = f"{said} please?", "The shop refused my card, what happened?"
    assert leaks({"sft": [said, *FILLER], "test": [near, paraphrase]}) == {"sft-test": {"exact": 0, "near": 1}}


def test_only_what_the_student_learns_stops_a_run():
    parts = {"sft": ["a card"], "dev": ["my pin"], "test": ["My PIN"]}
    refuse_copies(leaks(parts), "sft")  # dev and test share a row: counted, not learned
    with pytest.raises(UserError, match="1 texts are in both sft and test"):
        refuse_copies(leaks({**parts, "test": ["A card?"]}), "sft")
