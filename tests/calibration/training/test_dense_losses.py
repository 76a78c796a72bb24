"""Losses of dense answers against plain arithmetic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import VOID, Pose, Segmentation
from calibration.training.losses import find_loss
from calibration.training.objectives.confidences import risk_area
from calibration.training.objectives.dense import PLACE_LOSS, pixel_loss, weigh_classes


def test_void_pixels_teach_nothing() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 5)).byte()
    masks[0, :2] = VOID
    loss = pixel_loss().of_targets(logits, masks)
    loss.backward()

    shares = torch.log_softmax(logits.detach(), 1)
    kept = [float(shares[n, int(masks[n, y, x]), y, x]) for n, y, x in (masks != VOID).nonzero().tolist()]
    assert float(loss.detach()) == pytest.approx(-np.mean(kept), rel=1e-5)
    assert logits.grad is not None
    assert float(logits.grad[0, :, :2].abs().max()) == 0
    nothing = pixel_loss().of_targets(logits, torch.full((2, 4, 5), VOID).byte())
    assert float(nothing.detach()) == 0


def test_rare_classes_weigh_more() -> None:
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[:, 0, 0], masks[:, 1] = 1, VOID
    samples: Any = SimpleNamespace(targets=lambda indices: masks[indices])
    weights = weigh_classes(samples, np.arange(4))

    assert weights[1] > 5 * weights[0] > 0
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 0, 0] = 3
    both = torch.tensor([[[0, 1]]]).byte()
    assert pixel_loss(weights).of_targets(logits, both) > 1.5 * pixel_loss().of_targets(logits, both)


def test_a_teacher_of_classes_or_logits_is_followed() -> None:
    teacher = torch.randn(2, 3, 4, 5)
    loss = pixel_loss()

    assert float(loss.of_teacher(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    classes = teacher.argmax(1).float()
    right, wrong = 9 * torch.nn.functional.one_hot(classes.long(), 3).permute(0, 3, 1, 2).float(), teacher.flip(1)
    assert loss.of_teacher(right, classes, 1.0) < 0.01 < loss.of_teacher(wrong, classes, 1.0)
    one = loss.of_teacher(teacher[:1], wrong[:1], 1.0)
    larger = [logits[:1].repeat(1, 1, 3, 2) for logits in (teacher, wrong)]
    assert float(loss.of_teacher(larger[0], larger[1], 1.0)) == pytest.approx(float(one))


def test_maps_learn_where_visible_joints_are() -> None:
    maps = torch.zeros(1, 2, 6, 8, requires_grad=True)
    targets = torch.tensor([[[0.5625, 0.25, 1, 0.1, 0.1], [0.1, 0.9, 0, 0.1, 0.1]]])
    for _ in range(200):
        loss = PLACE_LOSS.of_targets(maps, targets)
        (gradient,) = torch.autograd.grad(loss, maps)
        maps = (maps - 2 * gradient).detach().requires_grad_()

    learned = maps.detach()
    assert float(learned[0, 1].abs().max()) == 0  # not visible
    row, column = divmod(int(learned[0, 0].argmax()), 8)
    assert (column, row) == (4, 1)
    assert Pose().quality((learned.numpy(),), targets.numpy()).tolist() == [1]
    keypoints = torch.tensor([[[0.5625, 0.25, 1], [0.3, 0.3, 1]]])
    assert PLACE_LOSS.of_teacher(learned[:, :1], keypoints[:, :1], 1.0) < PLACE_LOSS.of_teacher(
        learned[:, :1].flip(3), keypoints[:, :1], 1.0
    )
    assert float(PLACE_LOSS.of_teacher(learned, learned, 3.0)) == pytest.approx(0, abs=1e-5)


def test_every_dense_task_has_its_loss() -> None:
    assert find_loss(Pose()) is PLACE_LOSS
    assert find_loss(Segmentation()).of_teacher is pixel_loss().of_teacher


def test_the_area_is_smallest_where_the_surest_lose_least() -> None:
    losses = np.array([0.0, 0.0, 0.1, 0.4])

    assert risk_area(losses, np.array([4.0, 3, 2, 1])) == pytest.approx((0 + 0 + 0.1 / 3 + 0.5 / 4) / 4)
    assert risk_area(losses, np.array([1.0, 2, 3, 4])) == pytest.approx((0.4 + 0.25 + 0.5 / 3 + 0.5 / 4) / 4)
