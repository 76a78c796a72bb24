"""Frozen training: transfer learning as in the paper. The backbone stays as it is; each exit head learns alone.

The features come from the *deployed* segments, not from a torch copy of the backbone: so the heads learn on what they
will read in production, the final answers cannot change, and any imported ONNX graph can be given exits. One pass over
the data trains all heads at once, each with the task's loss of its own; features are made a batch at a time and never
held.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from artifacts import Task
from artifacts.console import track
from calibration.data.samples import Samples, in_chunks
from calibration.tracing.all_exits import SegmentRunner
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, record_epoch
from calibration.training.config import FrozenConfig
from calibration.training.losses import find_loss
from calibration.training.minibatches import count_batches, epoch_batches


def train_frozen(
    heads: Mapping[str, nn.Module], runner: SegmentRunner, samples: Samples, task: Task, config: FrozenConfig,
    checkpoint: Checkpoint,
) -> History:  # fmt: skip
    """Trains ``heads`` in place.

    Args:
        heads: cut name -> head from features (B, ...) to answers (B, ...).
        runner: the deployed segments, opened for ``config.batch_size`` rows.
        samples: the train part is trained on; the calibrate part is only measured, after every epoch.
        task: its loss teaches, its metric measures.
        config: how.
        checkpoint: takes the state after every epoch; a matching one is continued.

    Returns:
        Per epoch its number, phase, mean loss, seconds and the metric of every exit on the calibrate part.
    """
    net = nn.ModuleList(heads.values())
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    training = _Training(heads=heads, runner=runner, samples=samples, task=task, config=config, optimiser=optimiser)
    history = checkpoint.resume(net, optimiser)
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        net.train()
        loss = training.train_epoch(epoch)
        net.eval()
        metric = training.measure()
        result = EpochResult(phase="frozen", loss=loss, seconds=time.monotonic() - started, metric=metric)
        history = record_epoch(history, result, epochs=config.epochs, report=checkpoint.report)
        checkpoint.save(net, optimiser, history)
    return history


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Training:
    heads: Mapping[str, nn.Module]
    runner: SegmentRunner
    samples: Samples
    task: Task
    config: FrozenConfig
    optimiser: torch.optim.Optimizer

    def train_epoch(self, epoch: int) -> float:
        """Goes through the train part once; returns the mean loss of a head."""
        config, loss_of = self.config, find_loss(self.task).of_targets
        steps = count_batches(self.samples, config.batch_size)
        batches = epoch_batches(self.samples, config, epoch)
        total = 0.0
        for step, (inputs, targets) in enumerate(track(batches, description=f"epoch {epoch + 1}", total=steps)):
            progress = (epoch + (step + 0.5) / steps) / config.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            features = self.runner.features(self.runner.run(inputs))
            wanted = torch.from_numpy(targets)
            losses = [loss_of(head(torch.from_numpy(features[name])), wanted) for name, head in self.heads.items()]
            loss = torch.stack(losses).sum()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            total += float(loss.detach()) / len(losses)
        return total / steps

    def measure(self) -> dict[str, float]:
        """Returns the metric of every head on the calibrate part."""
        sums = {name: MetricSum(self.task) for name in self.heads}
        with torch.inference_mode():
            for chunk in in_chunks(self.samples.indices_of("calibrate"), self.config.batch_size):
                features = self.runner.features(self.runner.run(self.samples.inputs(chunk)))
                targets = self.samples.targets(chunk)
                for name, head in self.heads.items():
                    sums[name].add((head(torch.from_numpy(features[name])).numpy(),), targets)
        return {name: total.value for name, total in sums.items()}
