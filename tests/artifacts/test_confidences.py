"""Tests of learned confidences: the features of an answer, and the model over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from artifacts import FEATURES, InputError, LearnedConfidence, describe_choice

LOGITS = arrays(np.float32, (5, 4), elements=st.floats(-9, 9, width=32))


@given(logits=LOGITS)
def test_logits_and_their_probabilities_have_the_same_features(logits: np.ndarray) -> None:
    exact = logits.astype(np.float64)
    shares = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    by_logits = describe_choice(logits, probabilities=False)
    np.testing.assert_allclose(by_logits, describe_choice(shares, probabilities=True), atol=2e-2, rtol=1e-3)
    ranked = np.sort(shares, axis=1)[:, ::-1]
    expected = [ranked[:, 0], ranked[:, 0] - ranked[:, 1], -(shares * np.log(shares)).sum(axis=1)]
    np.testing.assert_allclose(by_logits[:, :3], np.stack(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(by_logits[:, 3], np.log(ranked[:, 0] / ranked[:, 1]), atol=1e-4)
    assert (by_logits.shape, by_logits.dtype) == ((5, len(FEATURES)), np.float32)


def test_extreme_answers_have_finite_features() -> None:
    logits = np.array([[1e4, -1e4], [0, 0], [88, -88]], np.float32)
    assert np.isfinite(describe_choice(logits, probabilities=False)).all()
    assert np.isfinite(describe_choice(np.array([[1.0, 0.0]], np.float32), probabilities=True)).all()


def test_a_model_weighs_features_and_classes() -> None:
    learned = LearnedConfidence(weights=(1.0, 0.0, -2.0, 0.0), bias=0.5, class_biases=(0.0, -3.0))
    features = np.array([[0.75, 0, 0.25, 0], [0.75, 0, 0.25, 0]], np.float32)
    found = learned.apply(features, np.array([0, 1]))
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-0.75)), 1 / (1 + np.exp(2.25))], rtol=1e-6)
    assert found.dtype == np.float32
    unseen = learned.apply(features[:1], np.array([7]))  # a class that no sample had in fitting
    np.testing.assert_array_equal(unseen, found[:1])
    with pytest.raises(InputError, match="has 1 weights; expected 4"):
        LearnedConfidence(weights=(1.0,), bias=0.0)
    with pytest.raises(InputError, match="not finite"):
        LearnedConfidence(weights=(1.0, 0.0, 0.0, np.inf), bias=0.0)
