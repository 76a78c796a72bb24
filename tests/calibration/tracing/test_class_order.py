"""Tests of another order of the classes: found where labels moved, and not where a network is merely wrong."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.tracing.class_order import find_other_order


def draw(count: int, classes: int, *, right: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes of samples, and answers of a network that is right on a share of them."""
    random = np.random.default_rng(count)
    truth = random.permutation(np.arange(count) % classes)
    wrong = random.random(count) > right
    return truth, np.where(wrong, random.integers(0, classes, count), truth)


@pytest.mark.parametrize(
    "order",
    [[0, 1, 3, 4, 5], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]],
    ids=["one is missing", "counted from 1", "turned round", "sorted as text"],
)
def test_classes_that_moved_are_found(order: list[int]) -> None:
    truth, answers = draw(256, 12 if len(order) > 6 else 6, right=0.8)
    there = np.isin(truth, order)
    labels = np.array([order.index(place) for place in truth[there]])
    found = find_other_order(answers[there], labels)
    assert found is not None
    assert found.places == {label: place for label, place in enumerate(order) if label != place}
    assert found.right > 0.75 > found.right_now
    assert "'c2' is its answer" in found.describe([f"c{label}" for label in range(len(order))])


@pytest.mark.parametrize("right", [0.0, 0.3, 0.6, 0.95, 1.0])
def test_a_network_that_is_merely_wrong_keeps_its_order(right: float) -> None:
    for classes in (2, 6, 100):
        truth, answers = draw(256, classes, right=right)
        assert find_other_order(answers, truth) is None


def test_classes_that_are_confused_are_no_order() -> None:
    truth, answers = draw(256, 6, right=1.0)
    assert find_other_order(np.where(answers == 2, 4, answers), truth) is None  # one is answered as another
    assert find_other_order(np.zeros_like(answers), truth) is None


def test_few_samples_tell_nothing() -> None:
    truth = np.arange(10) % 5
    assert find_other_order((truth + 1) % 5, truth) is None
    assert find_other_order(np.array([], np.int64), np.array([], np.int64)) is None
