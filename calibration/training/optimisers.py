"""Optimisers of end-to-end training, and the course of their learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from artifacts import unknown_name
from calibration.training.config import JointConfig

CLIPPED_NORM = 1.0


def make_optimiser(net: nn.Module, config: JointConfig) -> torch.optim.Optimizer:
    """Returns the optimiser of a training: SGD in Nesterov's form, or AdamW, without decay of biases and norms."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            net.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )
    if config.optimiser != "adamw":
        raise unknown_name("optimiser", config.optimiser, ("sgd", "adamw"))
    flat = [parameter for parameter in net.parameters() if parameter.ndim < 2]
    deep = [parameter for parameter in net.parameters() if parameter.ndim >= 2]
    groups = [{"params": deep, "weight_decay": config.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, config: JointConfig, progress: float) -> None:
    """Sets the learning rate after a share ``progress`` of the training: a warm-up, then a cosine to zero."""
    for group in optimiser.param_groups:
        group["lr"] = config.learning_rate * one_cycle(progress, config.warm_up)


def one_cycle(progress: float, warm_up: float) -> float:
    """Returns the share of the peak that the learning rate has after a share of the training."""
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
