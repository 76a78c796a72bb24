"""End-to-end training: backbone first, then backbone and all exits together with self-distillation.

The loss of the second phase is the task's loss of the final head plus, for every exit, a mix of the task's loss and the
divergence from the softened answer of the final head (Hinton et al. 2015, arXiv:1503.02531; Phuong and Lampert,
"Distillation-Based Training for Multi-Exit Architectures", ICCV 2019). Every epoch draws its randomness from
(seed, epoch) alone, and there is a checkpoint every few minutes, so that an interrupted training continues as if
nothing had happened. Several processes may share it (``calibration.training.processes``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from artifacts import FINAL_HEAD, Task, UsageError
from artifacts.console import track
from calibration.data.samples import Samples, in_chunks
from calibration.text.samples import TextSamples
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, Keeper, Progress, record_epoch
from calibration.training.config import JointConfig
from calibration.training.losses import settle_loss
from calibration.training.minibatches import Chunk, Epoch, Share, draw_epoch, load_chunks
from calibration.training.objectives.loss import Loss
from calibration.training.optimisers import CLIPPED_NORM, make_optimiser, set_rate
from calibration.training.processes import Processes
from export import MultiExitNet

_MEASURED_NUMBERS = 1 << 22  # of inputs at once: masks of all exits have to fit into memory
_MOST_ROWS = 500


def train_joint(
    net: MultiExitNet, samples: Samples, task: Task, config: JointConfig, checkpoint: Checkpoint,
    *, processes: Processes | None = None,
) -> History:  # fmt: skip
    """Trains ``net`` in place.

    Args:
        net: its parameters are where the training starts. It comes back on the processor.
        samples: the train part is trained on; the calibrate part is only measured, after every epoch.
        task: its loss teaches, its metric measures.
        config: how.
        checkpoint: takes the state after every epoch and every few minutes; a matching one is continued.
        processes: those that train together, of which the first alone measures and saves, and the workers that decode
            for them; ``None``: this one alone.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the metric of every exit on the calibrate part.
    """
    processes = processes or Processes(config.mixed_precision)
    net.to(device=processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = make_optimiser(net, config)
    progress = processes.resume(checkpoint, net, optimiser)
    teaching = _Teaching(
        net=net, loss_of=settle_loss(task, samples), config=config, optimiser=optimiser, processes=processes,
        keeper=Keeper(checkpoint, net, optimiser, leads=processes.leads),
    )  # fmt: skip
    history = progress.history
    share = Share(rank=processes.launch.rank, count=processes.launch.count, pieces=config.accumulate)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        drawn = draw_epoch(samples, config, epoch, workers=processes.workers, share=share, first=progress.steps)
        loss = teaching.teach(drawn, progress)
        if processes.leads:
            metric = measure_exits(net, samples, task, "calibrate", workers=processes.workers)
            phase = "joint" if epoch >= config.backbone_epochs else "backbone"
            result = EpochResult(phase=phase, loss=loss, seconds=time.monotonic() - started, metric=metric)
            history = record_epoch(history, result, epochs=config.epochs, report=checkpoint.report)
            teaching.keeper.keep(history)
        progress = Progress(history=history)
    net.to("cpu")
    return history


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teaching:
    """A net and all that changes it, step by step."""

    net: MultiExitNet
    loss_of: Loss
    config: JointConfig
    optimiser: torch.optim.Optimizer
    processes: Processes
    keeper: Keeper

    def teach(self, epoch: Epoch, progress: Progress) -> float:
        """Goes through an epoch, or through what is left of it; returns its mean loss."""
        stepping = self.processes.prepare(self.optimiser)
        self.net.train()
        total = progress.loss
        for done, pieces in enumerate(self._tracked(epoch), start=epoch.first):
            set_rate(self.optimiser, self.config, (epoch.number + (done + 0.5) / epoch.steps) / self.config.epochs)
            self.processes.seed(self.config.seed, epoch.number, done)
            self.optimiser.zero_grad(set_to_none=True)
            loss = sum(self._learn(piece, epoch.number) for piece in pieces)
            total += self.processes.average(self.net, loss)
            if self.config.optimiser == "adamw":
                self.processes.clip(self.net, CLIPPED_NORM)
            stepping.step()
            if done + 1 < epoch.steps:
                self.keeper.keep(progress.history, steps=done + 1, loss=total)
        return total / epoch.steps

    def _tracked(self, epoch: Epoch) -> Iterable[tuple[Chunk, ...]]:
        if not self.processes.leads:
            return epoch.batches
        left = epoch.steps - epoch.first
        return track(epoch.batches, description=f"epoch {epoch.number + 1}", total=left)

    def _learn(self, chunk: Chunk, epoch: int) -> float:
        """Adds the gradients of one piece of a batch; returns its share of the batch's loss."""
        net, config, loss_of = self.net, self.config, self.loss_of
        x, y = _tensors(chunk.inputs, self.processes.device), _targets(chunk).to(self.processes.device)
        with self.processes.autocast():
            if epoch >= config.backbone_epochs:
                loss = _joint_loss(net, x, y, loss_of, config)
            else:
                loss = loss_of.of_targets(net.backbone(*x), y)
        loss = loss / config.accumulate
        self.processes.backward(loss)
        return float(loss.detach())


def _tensors(inputs: Mapping[str, np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    tensors = [torch.from_numpy(array).to(device) for array in inputs.values()]
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
        weight = config.exit_weight / len(exits)
        if config.distillation < 1:
            loss = loss + weight * (1 - config.distillation) * loss_of.of_targets(answers, targets)
        if config.distillation > 0:
            apart = loss_of.of_teacher(answers, teacher, config.temperature)
            loss = loss + weight * config.distillation * apart
    return loss


def measure_exits(
    net: MultiExitNet, samples: Samples, task: Task, part: str, *, workers: int | None = None
) -> dict[str, float]:  # fmt: skip
    """Returns the metric of every exit, and that of the final head under its own name, on a part of the samples."""
    net.eval()
    device = next(net.parameters()).device
    indices = samples.indices_of(part)
    if isinstance(samples, TextSamples):
        indices = indices[np.argsort(samples.texts.sizes(indices), kind="stable")]
    sums: dict[str, MetricSum] = {}
    chunks = list(in_chunks(indices, _count_rows(samples, indices)))
    with torch.inference_mode():
        for chunk in load_chunks(samples, chunks, workers=workers):
            inputs = samples.trim(chunk.inputs) if isinstance(samples, TextSamples) else chunk.inputs
            exits, final = net(*_tensors(inputs, device))
            for name, answers in {**exits, FINAL_HEAD: final}.items():
                sums.setdefault(name, MetricSum(task)).add((answers.cpu().numpy(),), _targets(chunk).numpy())
    return {name: total.value for name, total in sums.items()}


def _count_rows(samples: Samples, indices: np.ndarray) -> int:
    """Returns how many samples are measured at once."""
    numbers = sum(array.size for array in samples.inputs(indices[:1]).values()) if len(indices) else 1
    return max(1, min(_MOST_ROWS, _MEASURED_NUMBERS // max(1, numbers)))
