import numpy as np
import pytest

from stages.parts.numbers.out_of_scope import out_of_scope_figures, scoped_confidence, separation


def texts(*distributions: dict[str, float]):
    return [scoped_confidence(probabilities, 1.0) for probabilities in distributions]


def test_what_no_label_fits_counts_as_answered_where_a_label_is_named_surely_enough():
    inside = texts({"a": 0.95, "b": 0.05}, {"b": 0.8, "a": 0.2}, {"a": 0.6, "b": 0.4}, {"none_of_these": 0.9, "a": 0.1})
    outside = texts(
        {"a": 0.97, "b": 0.03},
        {"a": 0.7, "b": 0.3},
        {"none_of_these": 0.7, "b": 0.3},
        {"none_of_these": 0.99, "a": 0.01},
        {},
    )
    found = out_of_scope_figures(inside, outside, threshold=0.65)
    assert (found.n, found.answered, found.confident, found.inside_answered) == (5, 2 / 5, 1 / 5, 2 / 4)
    # .95 and .8 are surer than four of the five outside, .6 than three, .1 than two.
    assert found.auroc == pytest.approx(13 / 20)
    # three of four are ever answered
    assert found.at_coverage == {"0.70": 2 / 5, "0.80": 2 / 5, "0.84": 2 / 5, "0.90": None}
    assert out_of_scope_figures(inside, outside, None).answered == 0


def test_confidence_is_in_the_likeliest_label_and_not_in_none_of_these():
    [text] = texts({"none_of_these": 0.7, "b": 0.2, "a": 0.1})
    assert text.confidence == pytest.approx(0.2) and not text.named


def test_familiarity_is_compared_at_shares_of_the_texts_inside():
    inside, outside = np.linspace(0.4, 1, 100), np.linspace(0, 0.6, 60)
    found = separation(inside, outside, 0.1)
    assert found.auroc == pytest.approx(1 - 1 / 18, abs=0.01) and found.answered == 0.1
    # The least familiar 16 % inside are below 0.5, as five sixths of those outside are.
    assert found.at_coverage["0.84"] == pytest.approx(1 / 6, abs=0.02) and found.at_coverage["0.70"] < 0.05
