"""Losses: by which exit heads of each task are trained, keyed by ``Task.loss``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from artifacts import Task, unknown_name
from calibration.data.samples import Samples
from calibration.training.objectives.dense import PLACE_LOSS, pixel_loss, weigh_classes
from calibration.training.objectives.loss import Loss

_LEAST = 1e-7  # of a probability
_PIXELS = "pixel-cross-entropy"
_WIDEST = 5.0  # of a log spread, either way


def _divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened logits (B, classes, ...) (Hinton et al. 2015, arXiv:1503.02531)."""
    wanted = functional.softmax(teacher / temperature, dim=1)
    found = functional.log_softmax(logits / temperature, dim=1)
    return functional.kl_div(found, wanted, reduction="batchmean") * temperature**2


def to_logits(answers: Tensor, *, probabilities: bool) -> Tensor:
    """Returns the logits of a network's answers, up to a constant where these are probabilities."""
    return answers.clamp_min(_LEAST).log() if probabilities else answers


def _normal_likelihood(answers: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of targets (B,) under normal distributions of value and log spread (B, 2)."""
    value, spread = answers[:, 0], answers[:, 1].clamp(-_WIDEST, _WIDEST)
    return (0.5 * ((targets - value) * torch.exp(-spread)) ** 2 + spread).mean()


def _teacher_likelihood(answers: Tensor, teacher: Tensor, _temperature: float) -> Tensor:
    """The same for the values that the final head answers."""
    return _normal_likelihood(answers, teacher[:, 0])


LOSSES: Mapping[str, Loss] = {
    "cross-entropy": Loss(of_targets=functional.cross_entropy, of_teacher=_divergence),
    "normal-likelihood": Loss(of_targets=_normal_likelihood, of_teacher=_teacher_likelihood),
    _PIXELS: pixel_loss(),
    "heatmap-cross-entropy": PLACE_LOSS,
}
"""The loss of each name; cross entropy takes logits (B, classes) and class indices (B,), the likelihood (B, 2), value
and log spread, and numbers (B,)."""


def find_loss(task: Task) -> Loss:
    """Returns the loss of a task.

    Raises:
        UsageError: the task names none of ``LOSSES``.
    """
    if task.loss not in LOSSES:
        raise unknown_name(f"loss of the task '{task.name}'", task.loss, LOSSES)
    return LOSSES[task.loss]


def settle_loss(task: Task, samples: Samples) -> Loss:
    """Returns the loss of a task for some samples: rare classes of pixels weigh more.

    Args:
        task: names the loss.
        samples: the train part counts.

    Raises:
        UsageError: the task names none of ``LOSSES``.
    """
    if task.loss == _PIXELS and samples.labelled:
        return pixel_loss(weigh_classes(samples, samples.indices_of("train")))
    return find_loss(task)
