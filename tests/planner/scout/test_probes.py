"""Probes: features are pooled as their layout says, and nobody is judged by what was fitted on him."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.scout.probes import GRID, confidence_of, make_targets, pool_features, predict_held_out
from planner.scout.scouting import split_evenly


def make_classes(seed: int, *, count: int = 120, classes: int = 3, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centres = random.standard_normal((classes, 20))
    return centres[labels] + noise * random.standard_normal((count, 20)), labels


def test_maps_are_averaged_over_a_grid_in_either_layout() -> None:
    random = np.random.default_rng(0)
    maps = random.standard_normal((4, 5, 7, 7)).astype(np.float16)
    pooled = pool_features(maps)
    assert pooled.shape == (4, 5 * (GRID * GRID + 1))
    first = maps.astype(np.float64)[:, :, :3, :3].mean(axis=(2, 3))
    np.testing.assert_allclose(pooled[:, :5], first)
    np.testing.assert_allclose(pool_features(maps.transpose(0, 2, 3, 1)), pooled, atol=1e-12)
    assert pool_features(maps[:, :, :1, :2]).shape == (4, 5 * 3)


def test_tokens_and_vectors_are_pooled() -> None:
    tokens = np.random.default_rng(0).standard_normal((3, 6, 4))
    np.testing.assert_allclose(pool_features(tokens), np.concatenate([tokens.mean(axis=1), tokens[:, 0]], axis=1))
    vectors = tokens[:, 0]
    np.testing.assert_array_equal(pool_features(vectors), vectors)
    assert pool_features(tokens[:, 0, 0]).shape == (3, 1)


def test_a_probe_finds_classes_that_are_there_and_none_where_there_are_none() -> None:
    features, labels = make_classes(0)
    halves = split_evenly(labels, seed=0)
    targets = np.eye(3)[labels]
    assert (predict_held_out(features, targets, halves).argmax(1) == labels).mean() > 0.95
    noise = np.random.default_rng(1).standard_normal(features.shape)
    assert (predict_held_out(noise, targets, halves).argmax(1) == labels).mean() < 0.6
    flat = predict_held_out(np.ones((120, 4)), targets, halves)
    np.testing.assert_allclose(flat[halves], targets[~halves].mean(axis=0)[None].repeat(halves.sum(), 0))


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_a_sample_is_judged_without_its_own_answer(seed: int) -> None:
    features, labels = make_classes(seed, count=40)
    halves, targets = split_evenly(labels, seed=seed), np.eye(3)[labels]
    before = predict_held_out(features, targets, halves)
    changed = targets.copy()
    changed[halves] = np.roll(changed[halves], 1, axis=1)
    after = predict_held_out(features, changed, halves)
    np.testing.assert_array_equal(after[halves], before[halves])
    assert not np.allclose(after[~halves], before[~halves])


def test_few_samples_of_many_features_do_not_overfit() -> None:
    random = np.random.default_rng(3)
    features, labels = make_classes(3, count=60, noise=0.5)
    wide = np.concatenate([features, random.standard_normal((60, 400))], axis=1)
    predicted = predict_held_out(wide, np.eye(3)[labels], split_evenly(labels, seed=0))
    assert (predicted.argmax(1) == labels).mean() > 0.7


def test_targets_are_probabilities_and_where_known_the_right_answers() -> None:
    logits = np.array([[2.0, 0.0], [-1.0, 1.0]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(make_targets(logits, None), shares)
    np.testing.assert_allclose(make_targets(shares, None), shares, err_msg="probabilities are taken as they are")
    np.testing.assert_allclose(make_targets(logits, np.array([1, 1])), (shares + np.array([0, 1])) / 2)


def test_confidence_is_the_lead_of_the_first_class() -> None:
    found = confidence_of(np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [3.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [0.5, 0, 1], atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("seed", [0, 1])
def test_halves_hold_every_class_evenly(seed: int) -> None:
    classes = np.repeat([0, 1, 2], [11, 4, 7])
    halves = split_evenly(classes, seed=seed)
    assert abs(int(halves.sum()) - 11) <= 1
    assert all(
        abs(int(halves[classes == wanted].sum()) * 2 - int((classes == wanted).sum())) <= 1 for wanted in range(3)
    )
