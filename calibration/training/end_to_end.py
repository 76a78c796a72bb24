"""End-to-end training: backbone first, then backbone and all exits together with self-distillation.

The loss of the second phase is the task's loss of the final head plus, for every exit, a mix of the task's loss and the
divergence from the softened answer of the final head (Hinton et al. 2015, arXiv:1503.02531; Phuong and Lampert,
"Distillation-Based Training for Multi-Exit Architectures", ICCV 2019). Every epoch draws its randomness from
(seed, epoch) alone and ends with a checkpoint, so that an interrupted training continues as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from artifacts import FINAL_HEAD, Task, UsageError
from artifacts.console import track
from calibration.data.samples import Samples
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, record_epoch
from calibration.training.config import JointConfig
from calibration.training.losses import Loss, find_loss
from calibration.training.minibatches import Chunk, Epoch, draw_epoch
from calibration.training.optimisers import make_optimiser, move, set_rate
from export import MultiExitNet


def train_joint(
    net: MultiExitNet, samples: Samples, task: Task, config: JointConfig, checkpoint: Checkpoint,
    *, workers: int | None = None,
) -> History:  # fmt: skip
    """Trains ``net`` in place.

    Args:
        net: its parameters are where the training starts.
        samples: the train part is trained on; the calibrate part is only measured, after every epoch.
        task: its loss teaches, its metric measures.
        config: how.
        checkpoint: takes the state after every epoch; a matching one is continued.
        workers: processes that decode, as for ``load_chunks``.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the metric of every exit on the calibrate part.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(net, config)
    history = checkpoint.resume(net, optimiser)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        drawn = draw_epoch(samples, config, epoch, workers=workers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed * 1_000_003 + epoch)  # of dropout
            loss = _train_epoch(net, drawn, find_loss(task), config, optimiser)
        metric = measure_exits(net, samples, task, "calibrate")
        phase = "joint" if epoch >= config.backbone_epochs else "backbone"
        result = EpochResult(phase=phase, loss=loss, seconds=time.monotonic() - started, metric=metric)
        history = record_epoch(history, result, epochs=config.epochs, report=checkpoint.report)
        checkpoint.save(net, optimiser, history)
    return history


def _train_epoch(
    net: MultiExitNet, epoch: Epoch, loss_of: Loss, config: JointConfig, optimiser: torch.optim.Optimizer
) -> float:  # fmt: skip
    net.train()
    total = 0.0
    batches = track(epoch.batches, description=f"epoch {epoch.number + 1}", total=epoch.steps)
    for step, chunk in enumerate(batches):
        set_rate(optimiser, config, (epoch.number + (step + 0.5) / epoch.steps) / config.epochs)
        x = _tensors(chunk.inputs)
        y = _targets(chunk)
        if epoch.number >= config.backbone_epochs:
            loss = _joint_loss(net, x, y, loss_of, config)
        else:
            loss = loss_of.of_targets(net.backbone(*x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        move(net, optimiser, config)
        total += float(loss.detach())
    return total / epoch.steps


def _tensors(inputs: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in tensors
    )


def _targets(chunk: Chunk) -> Tensor:
    if chunk.targets is None:
        raise UsageError("backbone and exits are trained together with labels only")
    return torch.from_numpy(chunk.targets)


def _joint_loss(
    net: MultiExitNet, x: tuple[Tensor, ...], targets: Tensor, loss_of: Loss, config: JointConfig
) -> Tensor:  # fmt: skip
    exits, final = net(*x)
    loss = loss_of.of_targets(final, targets)
    teacher = final.detach()
    for answers in exits.values():
        own = loss_of.of_targets(answers, targets)
        apart = loss_of.of_teacher(answers, teacher, config.temperature)
        mixed = (1 - config.distillation) * own + config.distillation * apart
        loss = loss + config.exit_weight / len(exits) * mixed
    return loss


def measure_exits(net: MultiExitNet, samples: Samples, task: Task, part: str) -> dict[str, float]:
    """Returns the metric of every exit, and that of the final head under its own name, on a part of the samples."""
    net.eval()
    indices = samples.indices_of(part)
    sums: dict[str, MetricSum] = {}
    with torch.inference_mode():
        for chunk in np.array_split(indices, max(1, len(indices) // 500)):
            targets = samples.targets(chunk)
            exits, final = net(*_tensors(samples.inputs(chunk)))
            for name, answers in {**exits, FINAL_HEAD: final}.items():
                sums.setdefault(name, MetricSum(task)).add((answers.numpy(),), targets)
    return {name: total.value for name, total in sums.items()}
