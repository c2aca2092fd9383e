import numpy as np
import pytest

from stages.parts.numbers.out_of_scope import out_of_scope_figures, scope_scores, scoped_confidence, separation


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


def unit(generator: np.random.Generator, around: np.ndarray, count: int) -> np.ndarray:
    found = around[generator.integers(0, len(around), count)] + 0.15 * generator.normal(size=(count, around.shape[1]))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_texts_far_from_the_pool_score_low_even_if_their_like_is_in_it():
    generator = np.random.default_rng(0)
    subjects, strange = np.eye(32)[:10], np.eye(32)[20:26]
    inside, outside = unit(generator, subjects, 300), unit(generator, strange, 300)
    pool = np.vstack([unit(generator, subjects, 800), unit(generator, strange, 200)])
    confidence = np.concatenate([np.full(800, 0.9), np.full(200, 0.3)])
    found = separation(scope_scores(inside, pool, confidence), scope_scores(outside, pool, confidence))
    assert found.auroc > 0.95 and found.at_coverage["0.84"] < 0.05
    trusting = separation(scope_scores(inside, pool, np.ones(1000)), scope_scores(outside, pool, np.ones(1000)))
    assert trusting.auroc < 0.8, "confidence is what tells the two parts of the pool apart"
    clean = separation(scope_scores(inside, pool[:800], confidence), scope_scores(outside, pool[:800], confidence))
    assert clean.auroc > 0.99
