"""Joint training: backbone first, then backbone and all exits together with self-distillation.

The loss of the second phase is the cross-entropy of the final head plus, for every exit, a mix of cross-entropy and the
divergence from the softened answer of the final head (Hinton et al. 2015, arXiv:1503.02531; Phuong and Lampert,
"Distillation-Based Training for Multi-Exit Architectures", ICCV 2019). Every epoch draws its randomness from
(seed, epoch) alone and ends with a checkpoint, so that an interrupted training continues as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from artifacts import UsageError, to_plain
from artifacts.console import track
from calibration.data.datasets import Dataset
from calibration.training.checkpoints import History, record_epoch, resume_checkpoint, save_checkpoint
from calibration.training.minibatches import count_batches, epoch_batches
from export.nets.multi_exit import MultiExitNet


@dataclass(frozen=True, slots=True, kw_only=True)
class JointConfig:
    """How to train backbone and exits together.

    Attributes:
        epochs: of both phases together.
        backbone_epochs: how many of them train the backbone alone.
        batch_size: samples per step.
        learning_rate: peak of the one-cycle schedule (warm-up over the first fifth, then a cosine to zero).
        momentum: of SGD, in Nesterov's form.
        weight_decay: of SGD, on every parameter.
        exit_weight: weight of all exits' losses together; the final head's is 1.
        distillation: share of the divergence in an exit's loss; the rest is cross-entropy.
        temperature: softens both answers in the divergence.
        crop_padding: pixels of zero padding for random crops; images are also mirrored at random.
        seed: decides the order and the augmentation.
    """

    epochs: int = 13
    backbone_epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    exit_weight: float = 3.0
    distillation: float = 0.5
    temperature: float = 3.0
    crop_padding: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.backbone_epochs < self.epochs:
            raise UsageError(
                f"--epochs {self.epochs} with --backbone-epochs {self.backbone_epochs}: "
                "at least one epoch must train the exits"
            )
        if self.batch_size < 2:
            raise UsageError(f"--train-batch-size {self.batch_size}: batch normalisation needs at least 2")


def train_joint(
    net: MultiExitNet, data: Dataset, config: JointConfig, checkpoint: Path, *, inputs: dict[str, str]
) -> History:
    """Trains ``net`` in place.

    Args:
        net: its parameters are where the training starts.
        data: the train part is trained on; the calibrate part is only measured, after every epoch.
        config: how.
        checkpoint: artifact folder for the state after every epoch; a matching one is continued.
        inputs: digests of everything else that the training depends on, for the checkpoint.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the accuracy of every exit on the calibrate part.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        net.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    parameters = to_plain(config)
    history = resume_checkpoint(checkpoint, net, optimiser, inputs=inputs, parameters=parameters)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        loss = _train_epoch(net, data, config, optimiser, epoch)
        accuracy = measure_accuracy(net, data, "calibrate")
        phase = "joint" if epoch >= config.backbone_epochs else "backbone"
        seconds = time.monotonic() - started
        history = record_epoch(
            history, epochs=config.epochs, phase=phase, loss=loss, seconds=seconds, accuracy=accuracy
        )
        save_checkpoint(checkpoint, net, optimiser, history, inputs=inputs, parameters=parameters)
    return history


def _train_epoch(
    net: MultiExitNet, data: Dataset, config: JointConfig, optimiser: torch.optim.SGD, epoch: int
) -> float:
    net.train()
    steps = count_batches(data, config.batch_size)
    batches = epoch_batches(
        data, batch_size=config.batch_size, crop_padding=config.crop_padding, seed=config.seed, epoch=epoch
    )
    total = 0.0
    for step, (images, labels) in enumerate(track(batches, description=f"epoch {epoch + 1}", total=steps)):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _one_cycle((epoch + (step + 0.5) / steps) / config.epochs)
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        y = torch.from_numpy(labels)
        if epoch >= config.backbone_epochs:
            loss = _joint_loss(net, x, y, config)
        else:
            loss = functional.cross_entropy(net.backbone(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += float(loss.detach())
    return total / steps


def _one_cycle(progress: float) -> float:
    warm_up = 0.2
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def _joint_loss(net: MultiExitNet, images: Tensor, labels: Tensor, config: JointConfig) -> Tensor:
    exits, final = net(images)
    loss = functional.cross_entropy(final, labels)
    teacher = functional.softmax(final.detach() / config.temperature, dim=1)
    for logits in exits.values():
        own = functional.cross_entropy(logits, labels)
        student = functional.log_softmax(logits / config.temperature, dim=1)
        apart = functional.kl_div(student, teacher, reduction="batchmean") * config.temperature**2
        mixed = (1 - config.distillation) * own + config.distillation * apart
        loss = loss + config.exit_weight / len(exits) * mixed
    return loss


def measure_accuracy(net: MultiExitNet, data: Dataset, part: str) -> dict[str, float]:
    """Returns the share of correct answers per exit, and of the final head under ``final``."""
    net.eval()
    indices = data.split(part)
    hits: dict[str, int] = {}
    with torch.inference_mode():
        for chunk in np.array_split(indices, max(1, len(indices) // 500)):
            labels = torch.from_numpy(data.labels_of(chunk))
            exits, final = net(torch.from_numpy(data.inputs(chunk)).contiguous(memory_format=torch.channels_last))
            for name, logits in {**exits, "final": final}.items():
                hits[name] = hits.get(name, 0) + int((logits.argmax(1) == labels).sum())
    return {name: count / max(1, len(indices)) for name, count in hits.items()}
