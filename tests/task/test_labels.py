"""Which label an answer names, however it spells it; and names that no answer could tell apart."""

import pytest

from stages.parts.task.label_probabilities import label_probabilities
from stages.parts.task.labels import UNKNOWN, clean_label, label_key, match_label

LABELS = ["card_arrival", "refund", "refund_not_showing_up", "what's_this", "café_bill", "c++", "c#", "c", "3d_secure"]
SPELLINGS = [
    "card_arrival",
    "Card Arrival",
    "CARD_ARRIVAL.",
    r"card\\_arrival",
    "card-arrival",
    "card\u2011arrival",
    "card\u00a0arrival",
    "{card_arrival}",
    "[card_arrival]",
    "(card_arrival)",
    "<card_arrival>",
    "\u201ccard_arrival\u201d",
    "'card_arrival'",
    "`card_arrival`",
    "```\ncard_arrival\n```",
    "**card_arrival**",
    "__card_arrival__",
    "- card_arrival",
    "* card_arrival",
    "\u2022 card_arrival",
    "1. card_arrival",
    "# card_arrival",
    "> card_arrival",
    "Label: card_arrival",
    "**Label:** card_arrival",
    "label = card_arrival",
    "Intent: `card_arrival`",
    "The label is card_arrival.",
    "card\u200b_arrival",
    "card_\u00adarrival",
    "\ufeffcard_arrival",
    "card_arrival!",
    "card_arrival,",
    "card_arrival;",
    "card_arrival\n\nThe customer waits for a card.",
    "Sure!\n\ncard_arrival",
]


@pytest.mark.parametrize("answer", SPELLINGS)
def test_what_names_exactly_one_label_names_it(answer):
    assert match_label(answer, LABELS) == "card_arrival"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("what\u2019s_this", "what's_this"),
        ("What's this?", "what's_this"),
        ("cafe\u0301_bill", "café_bill"),
        ("Caf\u00c9 bill", "café_bill"),
        ("C++", "c++"),
        ("`C#`", "c#"),
        ("c", "c"),
        ("refund.", "refund"),
        ("refund not showing up", "refund_not_showing_up"),
        ("3D-Secure", "3d_secure"),
    ],
)
def test_signs_and_accents_within_a_name_count(answer, label):
    assert match_label(answer, LABELS) == label


@pytest.mark.parametrize(
    "answer", ["card_arrival or refund", "card_arrival\nrefund", "card", "arrival", "not card_arrival", "", " ", "-"]
)
def test_what_names_none_or_several_is_unknown(answer):
    assert match_label(answer, LABELS) == UNKNOWN


def test_labels_that_differ_by_spelling_alone_share_a_key_and_others_do_not():
    for one, other in (("top-up", "top_up"), ("what's", "what\u2019s"), ("caf\u00e9", "cafe\u0301"), ("`a`", "a")):
        assert label_key(one) == label_key(other)
        assert match_label(one, [one, other]) == one, "its own spelling still names it"
    assert len({label_key(label) for label in LABELS}) == len(LABELS)
    assert label_key("-") and label_key("?")


@pytest.mark.parametrize("name", [*LABELS, "Card Arrival?", "caf\u00e9\u200b ", "What\u2019s  this", "a__b", "\u3000x"])
def test_cleaning_a_name_again_changes_nothing(name):
    assert clean_label(clean_label(name)) == clean_label(name)
    assert label_key(clean_label(name)) == label_key(name)


def tokens(*parts: str) -> dict:
    return {"content": [{"token": part, "logprob": -0.1, "top_logprobs": []} for part in parts]}


@pytest.mark.parametrize(
    "parts",
    [
        ("card", "_arrival"),
        (" card", "_arrival"),
        (" Card", " Arrival"),
        ("`", "card", "_arrival", "`"),
        (" `", "card", "\\\\_", "arrival"),
        ("card", "\\\\", "_arrival"),
        ("Label", ":", " card", "-arrival"),
        ("**", "card", "_arrival", "**"),
        ("[[ ##", " label", " ## ]]\n", "card", "_arrival", "\n\n", "[[ ## completed ## ]]"),
        ("[[ ##", " label", " ## ]]", " card", "_arrival"),
        ("[[ ##", " label", " ## ]]\n", "refund", "\n\n", "[[ ##", " label", " ## ]]\n", "card", "_arrival"),
    ],
)
def test_probabilities_are_read_in_any_spelling(parts):
    assert list(label_probabilities(tokens(*parts), LABELS)) == ["card_arrival"]
