"""Distributions over labels from what engines report."""

import math

import pytest

from stages.parts.task.label_probabilities import alternatives, label_probabilities

LABELS = ["card_arrival", "card_fee", "refund", "refund_missing", "top_up"]


def entry(token: str, probability: float, **others: float) -> dict:
    """One position of an answer: the token, its probability, and the alternatives'."""
    alternatives = {token: probability, **others}
    return {
        "token": token,
        "logprob": math.log(probability),
        "top_logprobs": [{"token": name, "logprob": math.log(value)} for name, value in alternatives.items()],
    }


def test_a_label_of_one_token_gives_the_whole_distribution():
    found = label_probabilities({"content": [entry("top_up", 0.6, card_arrival=0.3, card_fee=0.1)]}, LABELS)
    assert found == pytest.approx({"top_up": 0.6, "card_arrival": 0.3, "card_fee": 0.1})
    assert list(found) == ["top_up", "card_arrival", "card_fee"]


def test_alternatives_share_out_where_they_lead_to_several_labels():
    tokens = [entry("card", 0.5, ref=0.4, top=0.1), entry("_fee", 0.8, _arrival=0.2)]
    found = label_probabilities({"content": tokens}, LABELS)
    assert found == pytest.approx(
        {"card_fee": 0.4, "refund": 0.2, "refund_missing": 0.2, "card_arrival": 0.1, "top_up": 0.1}
    )


@pytest.mark.parametrize(
    ("end", "label"), [("<|eot_id|>", "refund"), ("\n\n", "refund"), ("_missing", "refund_missing")]
)
def test_a_label_that_begins_another_ends_where_the_answer_ends(end, label):
    other = {"_missing": 0.1} if end != "_missing" else {"<|eot_id|>": 0.1}
    found = label_probabilities({"content": [entry("refund", 1.0), entry(end, 0.9, **other)]}, LABELS)
    assert found == pytest.approx({label: 0.9, ({"refund", "refund_missing"} - {label}).pop(): 0.1})


def test_a_header_and_reasons_before_the_label_do_not_count():
    before = [entry("A card_fee?\n\n", 0.2), entry("[[ ## ", 0.9), entry("label ## ]]", 0.9), entry("\n", 0.9)]
    after = [entry("\n\n", 0.5), entry("[[ ## completed ## ]]", 0.1)]
    assert label_probabilities({"content": [*before, entry("top_up", 0.7), *after]}, LABELS) == pytest.approx(
        {"top_up": 0.7}
    )


def test_answers_without_a_label_or_without_logprobs_have_none():
    assert label_probabilities({"content": [entry("gibberish", 0.9)]}, LABELS) == {}
    assert label_probabilities({"content": [entry("card", 0.9)]}, LABELS) == {}  # cut short
    assert label_probabilities({"content": []}, LABELS) == {}
    assert label_probabilities(None, LABELS) == {}


def test_a_student_is_asked_for_all_of_its_labels_as_far_as_the_engine_goes():
    assert [alternatives(labels, 128) for labels in (5, 25, 77, 300)] == [20, 25, 77, 128]
    assert alternatives(77, 20) == 20


@pytest.mark.parametrize("logprob", [0.7, math.nan, math.inf, None, "-0.1", True])
def test_what_can_be_no_log_probability_gives_no_probabilities(logprob):
    broken = {"token": "top_up", "logprob": logprob, "top_logprobs": []}
    assert label_probabilities({"content": [broken]}, LABELS) == {}
    hidden = {"token": "top", "logprob": -0.1, "top_logprobs": [{"token": "ref", "logprob": logprob}]}
    assert label_probabilities({"content": [hidden]}, LABELS) == {}


def test_probabilities_never_leave_0_and_1():
    rounded = {"token": "top_up", "logprob": 1e-6, "top_logprobs": [{"token": "refund", "logprob": -9999.0}]}
    assert label_probabilities({"content": [rounded]}, LABELS) == {"top_up": 1.0, "refund": 0.0, "refund_missing": 0.0}
    twice = [{"token": token, "logprob": -0.2} for token in ("card_fee", "card_fee ", " card_fee", "top_up ")]
    listed = {"token": "top_up", "logprob": -0.2, "top_logprobs": twice}
    found = label_probabilities({"content": [listed]}, LABELS)
    assert sum(found.values()) == pytest.approx(1) and all(0 <= value <= 1 for value in found.values())
