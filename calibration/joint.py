"""Joint training: backbone first, then backbone and all exits together with self-distillation.

The loss of the second phase is the cross-entropy of the final head plus, for every exit, a mix of cross-entropy and the
divergence from the softened answer of the final head (Hinton et al. 2015, arXiv:1503.02531; Phuong and Lampert,
"Distillation-Based Training for Multi-Exit Architectures", ICCV 2019). Every epoch draws its randomness from
(seed, epoch) alone and ends with a checkpoint, so that an interrupted training continues as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from artifacts import UsageError, is_current, new_artifact, open_artifact, read_json, to_plain, write_json
from artifacts.console import say, track
from calibration.data import Dataset
from export.multi_exit import MultiExitNet


@dataclass(frozen=True, slots=True, kw_only=True)
class JointConfig:
    """How to train backbone and exits together.

    Attributes:
        epochs: of both phases together.
        backbone_epochs: how many of them train the backbone alone.
        batch_size: samples per step.
        learning_rate: peak of the one-cycle schedule (warm-up over the first fifth, then a cosine to zero).
        momentum, weight_decay: of SGD with Nesterov momentum.
        exit_weight: weight of all exits' losses together; the final head's is 1.
        distillation: share of the divergence in an exit's loss; the rest is cross-entropy.
        temperature: softens both answers in the divergence.
        crop_padding: pixels of zero padding for random crops; images are also flipped at random.
        seed: decides initialisation, order and augmentation.
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
            raise UsageError(f"--epochs {self.epochs} must exceed --backbone-epochs {self.backbone_epochs}, which starts at 0")
        if self.batch_size < 2:
            raise UsageError(f"--train-batch-size {self.batch_size}: batch normalisation needs at least 2")


def train_joint(
    net: MultiExitNet, data: Dataset, config: JointConfig, checkpoint: Path, *, inputs: dict[str, str]
) -> tuple[dict[str, Any], ...]:
    """Trains ``net`` in place.

    Args:
        net: freshly initialised under ``config.seed``.
        data: the train part is trained on; the calibrate part is only measured after every epoch.
        config: how.
        checkpoint: artifact folder for the state after every epoch; a matching one is continued.
        inputs: digests that the training depends on, for the checkpoint.

    Returns:
        The history: per epoch its phase, mean loss, seconds and the accuracy of every exit on the calibrate part.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        net.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    parameters = to_plain(config)
    history = _resume(net, optimiser, checkpoint, inputs, parameters)
    indices = data.split("train")
    steps = len(indices) // config.batch_size
    if steps == 0:
        raise UsageError(f"{data.name} has {len(indices)} images to train on, fewer than one batch of {config.batch_size}")
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        joint = epoch >= config.backbone_epochs
        random = np.random.default_rng([config.seed, epoch])
        net.train()
        total = 0.0
        batches = _batches(data, random.permutation(indices), config, random)
        for step, (images, labels) in enumerate(track(batches, description=f"epoch {epoch + 1}", total=steps)):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _one_cycle((epoch + (step + 0.5) / steps) / config.epochs)
            loss = _joint_loss(net, images, labels, config) if joint else _backbone_loss(net, images, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        accuracy = measure_accuracy(net, data, "calibrate")
        history = (
            *history,
            {
                "epoch": epoch + 1,
                "phase": "joint" if joint else "backbone",
                "loss": total / steps,
                "accuracy": accuracy,
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        shown = accuracy if joint else {"final": accuracy["final"]}
        say(f"epoch {epoch + 1}/{config.epochs} loss {total / steps:.3f} " + " ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        _save(net, optimiser, history, checkpoint, inputs, parameters)
    return history


def measure_accuracy(net: MultiExitNet, data: Dataset, part: str) -> dict[str, float]:
    """Returns the share of correct answers per exit, and of the final head under ``final``."""
    net.eval()
    indices = data.split(part)
    hits: dict[str, int] = {}
    with torch.inference_mode():
        for chunk in np.array_split(indices, max(1, len(indices) // 500)):
            labels = torch.from_numpy(data.labels[chunk])
            images = torch.from_numpy(data.inputs(chunk)).to(memory_format=torch.channels_last)
            exits, final = net(images)
            for name, logits in {**exits, "final": final}.items():
                hits[name] = hits.get(name, 0) + int((logits.argmax(1) == labels).sum())
    return {name: count / len(indices) for name, count in hits.items()}


def _batches(
    data: Dataset, order: np.ndarray, config: JointConfig, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
        chunk = order[start : start + config.batch_size]
        images = augment(data.images[chunk], config.crop_padding, random)
        normal = (torch.from_numpy(images).float() / 255 - data.mean) / data.std
        yield normal.contiguous(memory_format=torch.channels_last), torch.from_numpy(data.labels[chunk])


def augment(images: np.ndarray, padding: int, random: np.random.Generator) -> np.ndarray:
    """Shifts every image by up to ``padding`` pixels and mirrors half of them; uint8 (N, C, H, W), a new array."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.empty_like(images)
    shifts = random.integers(0, 2 * padding + 1, (count, 2))
    mirrored = random.random(count) < 0.5
    for row, ((down, right), mirror) in enumerate(zip(shifts, mirrored, strict=True)):
        crop = padded[row, :, down : down + height, right : right + width]
        out[row] = crop[..., ::-1] if mirror else crop
    return out


def _one_cycle(progress: float) -> float:
    warm_up = 0.2
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def _backbone_loss(net: MultiExitNet, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(net.backbone(images), labels)


def _joint_loss(net: MultiExitNet, images: Tensor, labels: Tensor, config: JointConfig) -> Tensor:
    exits, final = net(images)
    loss = functional.cross_entropy(final, labels)
    teacher = functional.softmax(final.detach() / config.temperature, dim=1)
    for logits in exits.values():
        own = functional.cross_entropy(logits, labels)
        student = functional.log_softmax(logits / config.temperature, dim=1)
        apart = functional.kl_div(student, teacher, reduction="batchmean") * config.temperature**2
        loss = loss + config.exit_weight / len(exits) * (
            (1 - config.distillation) * own + config.distillation * apart
        )
    return loss


def _save(
    net: MultiExitNet, optimiser: torch.optim.SGD, history: tuple[dict[str, Any], ...],
    checkpoint: Path, inputs: dict[str, str], parameters: dict[str, Any],
) -> None:  # fmt: skip
    momentum = {
        f"{index}": optimiser.state[parameter]["momentum_buffer"].contiguous()
        for index, parameter in enumerate(net.parameters())
        if parameter in optimiser.state
    }
    with new_artifact(checkpoint, kind="checkpoint", inputs=inputs, parameters=parameters) as staging:
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, staging / "net.safetensors")
        save_file(momentum, staging / "momentum.safetensors")
        write_json(staging / "history.json", history)


def _resume(
    net: MultiExitNet, optimiser: torch.optim.SGD, checkpoint: Path, inputs: dict[str, str], parameters: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    if not is_current(checkpoint, kind="checkpoint", inputs=inputs, parameters=parameters):
        return ()
    artifact = open_artifact(checkpoint, kind="checkpoint", remedy="python -m calibration")
    net.load_state_dict(load_file(artifact.path("net.safetensors")))
    momentum = load_file(artifact.path("momentum.safetensors"))
    for index, parameter in enumerate(net.parameters()):
        if str(index) in momentum:
            optimiser.state[parameter]["momentum_buffer"] = momentum[str(index)].to(memory_format=torch.preserve_format)
    history = tuple(read_json(artifact.path("history.json"), list))
    say(f"continuing after epoch {len(history)}")
    return history
