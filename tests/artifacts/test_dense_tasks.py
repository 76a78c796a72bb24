"""Segmentation and pose: their metrics against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import VOID, InputError, Pose, Segmentation, UsageError, find_keypoints, find_task
from calibration.certify.set_metrics import set_metric


@given(st.integers(0, 2**32 - 1))
def test_miou_counts_pixels_and_leaves_void_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(3, 4, 5, 6)).astype(np.float32)
    masks = random.choice([0, 1, 3, VOID], size=(3, 5, 6)).astype(np.uint8)
    task = Segmentation()

    counts = task.counts((logits,), masks)

    found = logits.argmax(axis=1)
    for row in range(3):
        ratios = []
        for kind in range(4):
            pixels = [
                (bool(found[row, y, x] == kind), bool(masks[row, y, x] == kind))
                for y in range(5) for x in range(6) if masks[row, y, x] != VOID
            ]  # fmt: skip
            both, either = sum(a and b for a, b in pixels), sum(a or b for a, b in pixels)
            assert (counts[row, kind], counts[row, 4 + kind]) == (both, either)
            ratios += [both / either] if either else []
        assert task.quality((logits,), masks)[row] == pytest.approx(np.mean(ratios) if ratios else 1.0)
    if (masks != VOID).any():
        assert task.summarise(counts.sum(axis=0)) == pytest.approx(set_metric("miou", counts))


def test_classes_are_judged_as_their_logits_are() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, 4, 5, 6)).astype(np.float32)
    masks = random.integers(0, 4, (2, 5, 6)).astype(np.uint8)
    classes = logits.argmax(axis=1).astype(np.uint8)
    task = find_task("segmentation", {"classes": 4})

    assert np.array_equal(task.counts((logits,), masks), task.counts((classes,), masks))
    assert (task.agreement((logits,), (classes,)) == 1).all()
    classes[0, 0, 0] = (classes[0, 0, 0] + 1) % 4
    assert task.agreement((logits,), (classes,)).tolist() == pytest.approx([29 / 30, 1])


def test_masks_of_another_size_or_class_are_refused() -> None:
    answers = (np.zeros((1, 2, 4, 4), np.float32),)

    with pytest.raises(InputError, match="size of the network's input"):
        Segmentation().quality(answers, np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(InputError, match="holds class 2, and the network tells 2"):
        Segmentation().quality(answers, np.full((1, 4, 4), 2, np.uint8))


def test_a_joint_is_right_within_half_a_head() -> None:
    maps = np.full((1, 3, 8, 8), -9.0, np.float32)
    maps[0, [0, 1, 2], [2, 5, 0], [3, 4, 7]] = 9
    found = find_keypoints(maps)
    assert found[0, :, :2] == pytest.approx(np.array([[3.5, 2.5], [4.5, 5.5], [7.5, 0.5]]) / 8)
    assert found[0, :, 2] == pytest.approx(1, abs=1e-5)

    targets = np.zeros((1, 3, 5), np.float32)
    targets[0, :, :2], targets[0, :, 3:] = found[0, :, :2], (0.2, 0.1)  # twice as wide as high: a picture on its side
    targets[0, :2, 2] = 1
    assert Pose().quality((maps,), targets).tolist() == [1]
    targets[0, 0, 0] += 0.099
    assert Pose().quality((maps,), targets).tolist() == [1]
    targets[0, 0, 1] += 0.03
    assert Pose().quality((maps,), targets).tolist() == [0.5]
    targets[0, 2, :2] = 0  # not visible, so that it does not count
    assert Pose().quality((maps,), targets).tolist() == [0.5]


def test_a_peak_leans_towards_its_higher_neighbour() -> None:
    maps = np.zeros((1, 1, 6, 6), np.float32)
    maps[0, 0, 2, 3], maps[0, 0, 2, 4], maps[0, 0, 1, 3] = 5, 2, 1

    assert find_keypoints(maps)[0, 0, :2] == pytest.approx([(3.5 + 0.25) / 6, (2.5 - 0.25) / 6])


def test_poses_agree_where_their_joints_are_close() -> None:
    here = np.array([[[0.5, 0.5, 1], [0.2, 0.2, 1]]], np.float32)
    there = np.array([[[0.5, 0.55, 1], [0.3, 0.2, 1]]], np.float32)

    assert Pose().agreement((here,), (there,)).tolist() == [0.5]
    with pytest.raises(UsageError, match="mean over samples"):
        Pose().summarise(np.zeros(2))
