"""Losses of dense answers: cross entropy over the classes of each pixel, and over the places of each joint."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from artifacts import VOID
from calibration.data.samples import Samples
from calibration.training.objectives.loss import Loss

_WEIGHED_MASKS = 128
_SOFTEST = 1.1
"""Classes are weighed by 1 / log(1.1 + share): rare ones count up to ten times (Paszke et al., "ENet", 2016, with its
1.02 raised, since what is very rare is often wrong in the masks too)."""
_SPREAD = 1.0  # of the target around a joint, in cells


def pixel_loss(weights: Tensor | None = None) -> Loss:
    """Returns the loss of segmentation: logits (B, C, H, W) against masks (B, H, W), pixels of no class left out.

    Args:
        weights: at least (C,), of the classes; ``None``: all alike.
    """
    return Loss(of_targets=partial(_pixel_cross_entropy, weights=weights), of_teacher=_pixel_divergence)


def weigh_classes(samples: Samples, indices: np.ndarray) -> Tensor:
    """Returns the weights (255,) of all classes that a mask can hold, by their share of the pixels in some masks.

    Args:
        samples: with masks as targets.
        indices: of the train part; evenly spaced ones of them are looked at.
    """
    counts = np.zeros(VOID + 1, np.int64)
    for index in indices[:: max(1, len(indices) // _WEIGHED_MASKS)]:
        counts += np.bincount(samples.targets(np.array([index])).reshape(-1), minlength=VOID + 1)
    shares = counts[:VOID] / max(1, int(counts[:VOID].sum()))
    return torch.from_numpy((1 / np.log(_SOFTEST + shares)).astype(np.float32))


def _pixel_cross_entropy(logits: Tensor, masks: Tensor, *, weights: Tensor | None) -> Tensor:
    kept = masks != VOID
    if not bool(kept.any()):
        return logits.sum() * 0
    own = None if weights is None else weights[: logits.shape[1]]
    return functional.cross_entropy(logits, masks.long(), weight=own, ignore_index=VOID)


def _pixel_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the pixels of the divergence from the softened answer of the full network.

    A teacher that answers with classes (B, H, W) is taken at its word.
    """
    if teacher.ndim == 3:
        return functional.cross_entropy(logits, teacher.long())
    wanted = functional.softmax(teacher / temperature, dim=1)
    found = functional.log_softmax(logits / temperature, dim=1)
    pixels = logits.numel() / logits.shape[1]
    return functional.kl_div(found, wanted, reduction="sum") * (temperature**2 / pixels)


def _place_cross_entropy(maps: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over all places of a map (B, J, H, W) against a blur around each visible joint (B, J, 5)."""
    return _compare_places(maps, _blur(targets[..., :2], maps.shape[2], maps.shape[3]), targets[..., 2] > 0)


def _compare_places(maps: Tensor, wanted: Tensor, visible: Tensor) -> Tensor:
    found = functional.log_softmax(maps.flatten(2), dim=2)
    each = -(wanted * found).sum(dim=2)
    return (each * visible).sum() / visible.sum().clamp_min(1)


def _blur(places: Tensor, height: int, width: int) -> Tensor:
    """Returns (B, J, H * W): a Gaussian around each place, which sums to 1."""
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    down = (rows - places[..., 1:2] * height) ** 2
    right = (columns - places[..., 0:1] * width) ** 2
    return torch.softmax(-(down[..., :, None] + right[..., None, :]).flatten(2) / (2 * _SPREAD**2), dim=2)


def _place_divergence(maps: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the joints of the divergence from the softened maps of the full network, or from its keypoints."""
    if teacher.ndim == 3:
        wanted = _blur(teacher[..., :2], maps.shape[2], maps.shape[3])
        return _compare_places(maps, wanted, torch.ones(teacher.shape[:2], dtype=torch.bool))
    wanted = functional.softmax(teacher.flatten(2) / temperature, dim=2)
    found = functional.log_softmax(maps.flatten(2) / temperature, dim=2)
    joints = maps.shape[0] * maps.shape[1]
    return functional.kl_div(found, wanted, reduction="sum") * (temperature**2 / joints)


PLACE_LOSS = Loss(of_targets=_place_cross_entropy, of_teacher=_place_divergence)
"""The loss of pose."""
