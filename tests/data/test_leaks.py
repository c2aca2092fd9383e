"""Leaks between parts: which texts count as the same, and that the count stops a run."""

import pandas as pd
import pytest

from stages.parts.data.leaks import leaks, near_duplicates, refuse_copies, without_copies
from stages.parts.data.left_out import leave_out
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


SPELLINGS = [
    "why\u00a0was my card refused?",
    "why\twas  my card\u3000refused?",
    "why was my ca\u00adrd refu\u200bsed?",
    "\ufeffwhy was my \uff43\uff41\uff52\uff44 refused?\n",
    "why was my card refused? <|eot_id|>",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_blanks_markers_and_invisible_characters_do_not_hide_a_copy(spelling):
    parts = {"sft": [spelling, *FILLER], "test": ["why was my card refused?"]}
    assert leaks(parts)["sft-test"]["exact"] == 1
    assert not without_copies([{"text": spelling}], parts["test"])
    assert near_duplicates([spelling, FILLER[0]], ["My card was refused. Why?"]) == 1
    columns = ["row", "id", "text", "label", "part"]
    rows = pd.DataFrame(
        [(1, "a", spelling, "x", "train"), (2, "b", parts["test"][0], "x", "test")]
        + [(row, str(row), f"text {row}", "x", "train") for row in range(3, 200)],
        columns=columns,
    )
    kept, counts = leave_out(rows)
    assert counts["in_test"] == 1 and "a" not in set(kept.id) and list(kept.columns) == columns
    # What is kept stays as the user wrote it.
    kept, counts = leave_out(rows.assign(part="pool", label=None))
    assert counts["repeated"] == 1 and kept.text.iloc[0] == spelling


def test_emoji_are_no_near_duplicates_of_each_other():
    assert near_duplicates(["💳", "🙂"], ["🙂\ufe0f"]) == 1


def test_a_filler_word_is_near_and_a_paraphrase_is_not():
    said = "Why has my card payment been declined at the supermarket today"
    near, paraphrase = f"{said} please?", "The shop refused my card, what happened?"
    assert leaks({"sft": [said, *FILLER], "test": [near, paraphrase]}) == {"sft-test": {"exact": 0, "near": 1}}


def test_only_what_the_student_learns_stops_a_run():
    parts = {"sft": ["a card"], "dev": ["my pin"], "test": ["My PIN"]}
    refuse_copies(leaks(parts), "sft")  # dev and test share a row: counted, not learned
    with pytest.raises(UserError, match="1 texts are in both sft and test"):
        refuse_copies(leaks({**parts, "test": ["A card?"]}), "sft")
