"""End-to-end training: backbone first, then backbone and all exits together with self-distillation.

The loss of the second phase is the task's loss of the final head plus, for every exit, a mix of the task's loss and the
divergence from the softened answer of the final head (Hinton et al. 2015, arXiv:1503.02531; Phuong and Lampert,
"Distillation-Based Training for Multi-Exit Architectures", ICCV 2019). Every epoch draws its randomness from
(seed, epoch) alone and ends with a checkpoint, so that an interrupted training continues as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from artifacts import FINAL_HEAD, Task, UsageError
from artifacts.console import track
from calibration.data.samples import Samples, in_chunks
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, record_epoch
from calibration.training.config import JointConfig
from calibration.training.loss import Loss
from calibration.training.losses import settle_loss
from calibration.training.minibatches import Chunk, Epoch, draw_epoch
from export import MultiExitNet

MEASURED_ROWS = 32  # at once: masks of all exits have to fit into memory


def train_joint(
    net: MultiExitNet, samples: Samples, task: Task, config: JointConfig, checkpoint: Checkpoint,
    *, workers: int | None = None,
) -> History:  # fmt: skip
    """Trains ``net`` in place.

    Args:
        net: its parameters are where the training starts; it takes one input.
        samples: the train part is trained on; the calibrate part is only measured, after every epoch.
        task: its loss teaches, its metric measures.
        config: how.
        checkpoint: takes the state after every epoch; a matching one is continued.
        workers: processes that decode, as for ``load_chunks``.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the metric of every exit on the calibrate part.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        net.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    history = checkpoint.resume(net, optimiser)
    loss_of = settle_loss(task, samples)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        drawn = draw_epoch(samples, config, epoch, workers=workers)
        loss = _train_epoch(net, drawn, loss_of, config, optimiser)
        metric = measure_exits(net, samples, task, "calibrate")
        phase = "joint" if epoch >= config.backbone_epochs else "backbone"
        result = EpochResult(phase=phase, loss=loss, seconds=time.monotonic() - started, metric=metric)
        history = record_epoch(history, result, epochs=config.epochs, report=checkpoint.report)
        checkpoint.save(net, optimiser, history)
    return history


def _train_epoch(
    net: MultiExitNet, epoch: Epoch, loss_of: Loss, config: JointConfig, optimiser: torch.optim.SGD
) -> float:  # fmt: skip
    net.train()
    total = 0.0
    batches = track(epoch.batches, description=f"epoch {epoch.number + 1}", total=epoch.steps)
    for step, chunk in enumerate(batches):
        for group in optimiser.param_groups:
            progress = (epoch.number + (step + 0.5) / epoch.steps) / config.epochs
            group["lr"] = config.learning_rate * _one_cycle(progress)
        x = _tensor(chunk.inputs)
        y = _targets(chunk)
        if epoch.number >= config.backbone_epochs:
            loss = _joint_loss(net, x, y, loss_of, config)
        else:
            loss = loss_of.of_targets(net.backbone(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += float(loss.detach())
    return total / epoch.steps


def _tensor(inputs: Mapping[str, np.ndarray]) -> Tensor:
    (array,) = inputs.values()
    tensor = torch.from_numpy(array)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _targets(chunk: Chunk) -> Tensor:
    if chunk.targets is None:
        raise UsageError("backbone and exits are trained together with labels only")
    return torch.from_numpy(chunk.targets)


def _one_cycle(progress: float) -> float:
    warm_up = 0.2
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def _joint_loss(net: MultiExitNet, x: Tensor, targets: Tensor, loss_of: Loss, config: JointConfig) -> Tensor:
    exits, final = net(x)
    loss = loss_of.of_targets(final, targets)
    teacher = final.detach()
    for answers in exits.values():
        weight = config.exit_weight / len(exits)
        if config.distillation < 1:
            loss = loss + weight * (1 - config.distillation) * loss_of.of_targets(answers, targets)
        if config.distillation > 0:
            apart = loss_of.of_teacher(answers, teacher, config.temperature)
            loss = loss + weight * config.distillation * apart
    return loss


def measure_exits(net: MultiExitNet, samples: Samples, task: Task, part: str) -> dict[str, float]:
    """Returns the metric of every exit, and that of the final head under its own name, on a part of the samples."""
    net.eval()
    indices = samples.indices_of(part)
    sums: dict[str, MetricSum] = {}
    with torch.inference_mode():
        for chunk in in_chunks(indices, MEASURED_ROWS):
            targets = samples.targets(chunk)
            exits, final = net(_tensor(samples.inputs(chunk)))
            for name, answers in {**exits, FINAL_HEAD: final}.items():
                sums.setdefault(name, MetricSum(task)).add((answers.numpy(),), targets)
    return {name: total.value for name, total in sums.items()}
