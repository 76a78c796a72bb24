"""Frozen training: transfer learning as in the paper. The backbone stays as it is; each exit head learns alone.

The features come from the *deployed* segments, not from a torch copy of the backbone: so the heads learn on what they
will read in production, the final answers cannot change, and any imported ONNX graph can be given exits. All heads are
trained at once, each with a loss of its own: the task's, mixed with the divergence from the softened answer of the full
network (Hinton et al. 2015, arXiv:1503.02531). Without labels the divergence is all there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import Task, UsageError
from artifacts.console import track
from calibration.data.samples import in_chunks
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, record_epoch
from calibration.training.config import FrozenConfig
from calibration.training.features import FeatureCache, FeatureMaker, Features, fits_on_disk, join_features
from calibration.training.loss import Loss
from calibration.training.losses import to_logits
from calibration.training.minibatches import Augmentation, training_indices
from export import answer_reduced

MEASURED_SAMPLES = 512
"""Samples of the calibrate part, evenly spaced, on which heads are measured after every epoch."""
_MEASURED_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTask:
    """What the heads are to learn.

    Attributes:
        task: its metric measures.
        loss: teaches.
        probabilities: the full network answers with probabilities rather than logits.
        config: how.
    """

    task: Task
    loss: Loss
    probabilities: bool
    config: FrozenConfig


def train_frozen(
    heads: Mapping[str, nn.Module], maker: FeatureMaker, what: FrozenTask, checkpoint: Checkpoint, *, folder: Path
) -> History:
    """Trains ``heads`` in place.

    Args:
        heads: cut name -> head from features (B, ...) to logits (B, ...).
        maker: makes their features. The train part of its samples is trained on, the calibrate part only measured; its
            runner is closed once it is not needed any more.
        what: task and configuration.
        checkpoint: takes the state after every epoch; a matching one is continued.
        folder: where features may be kept meanwhile.

    Returns:
        Per epoch its number, phase, mean loss of a head, seconds and the metric of every exit on samples of the
        calibrate part: that of the task, or without labels the agreement with the full network.

    Raises:
        UsageError: there are fewer than two samples to train on.
    """
    config = what.config
    indices = training_indices(maker.samples, config)
    batch_size = min(config.batch_size, len(indices))
    if batch_size < 2:
        raise UsageError(f"{maker.samples.name} has one sample to train on; batch normalisation needs at least 2")
    steps = len(indices) // batch_size
    epochs = config.count_epochs(steps)
    net = nn.ModuleList(heads.values())
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    history = checkpoint.resume(net, optimiser)
    if len(history) >= epochs:
        return history
    with ExitStack() as stack:
        source = _Source(maker=maker, indices=indices, batch_size=batch_size, config=config)
        source.keep(folder, stack, report=checkpoint.report)
        held_out = _keep_held_out(maker, folder)
        if held_out is not None:
            stack.enter_context(held_out)
        if source.kept:
            maker.runner.close()  # what its engines hold is needed for the heads now
        pool = stack.enter_context(_head_pool(len(heads)))
        for epoch in range(len(history), epochs):
            started = time.monotonic()
            net.train()
            total = 0.0
            for step, batch in enumerate(track(source.batches(epoch), description=f"epoch {epoch + 1}", total=steps)):
                for group in optimiser.param_groups:
                    progress = (epoch + (step + 0.5) / steps) / epochs
                    group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
                total += _step(heads, batch, what, optimiser, pool)
            net.eval()
            metric = _measure(heads, held_out, what)
            result = EpochResult(
                phase="frozen", loss=total / steps, seconds=time.monotonic() - started, metric=metric
            )  # fmt: skip
            history = record_epoch(history, result, epochs=epochs, report=checkpoint.report)
            checkpoint.save(net, optimiser, history)
    return history


class _Source:
    """The train part as features, batch by batch: out of a cache, or made anew in every epoch."""

    def __init__(self, maker: FeatureMaker, indices: np.ndarray, batch_size: int, config: FrozenConfig) -> None:
        self._maker, self._indices, self._batch_size, self._config = maker, indices, batch_size, config
        self._cache: FeatureCache | None = None

    def keep(self, folder: Path, stack: ExitStack, *, report: Callable[[str], None]) -> None:
        """Runs the backbone once over the train part and keeps what comes out, where that can be done."""
        count = len(self._indices)
        folder.mkdir(parents=True, exist_ok=True)
        if self._config.augment != "none":
            report(f"the backbone runs over {count} samples in every epoch, since images vary (--augment)")
            return
        made = self._maker.make(self._indices)
        first = next(made)
        if not fits_on_disk(folder, first, count):
            report(f"the backbone runs over {count} samples in every epoch: their features do not fit on the disk")
            made.close()
            return
        cache = stack.enter_context(FeatureCache(folder, first))
        chunks = -(-count // self._maker.rows)
        for features in track(chain([first], made), description="running the backbone", total=chunks):
            cache.append(features)
        self._cache = cache

    @property
    def kept(self) -> bool:
        """Whether the backbone has done its work."""
        return self._cache is not None

    def batches(self, epoch: int) -> Iterator[Features]:
        """Yields the train part in an order of (seed, epoch) alone; the last, smaller batch is left out."""
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._indices))
        order = order[: len(order) - len(order) % self._batch_size]
        if self._cache is not None:
            for positions in in_chunks(order, self._batch_size):
                yield self._cache.read(positions)
            return
        waiting: list[Features] = []
        for features in self._maker.make(self._indices[order], augmentation=Augmentation.of(self._config, epoch)):
            waiting.append(features)
            joined = join_features(waiting)
            while len(joined.answers) >= self._batch_size:
                yield joined.rows(0, self._batch_size)
                joined = joined.rows(self._batch_size, None)
            waiting = [joined] if len(joined.answers) else []


def _keep_held_out(maker: FeatureMaker, folder: Path) -> FeatureCache | None:
    """Returns the features of a few samples of the calibrate part; ``None`` where it has none."""
    available = maker.samples.indices_of("calibrate")
    cache = None
    for features in maker.make(available[:: max(1, len(available) // MEASURED_SAMPLES)]):
        cache = FeatureCache(folder, features) if cache is None else cache
        cache.append(features)
    return cache


def _step(
    heads: Mapping[str, nn.Module], batch: Features, what: FrozenTask, optimiser: torch.optim.Optimizer,
    pool: ThreadPoolExecutor,
) -> float:  # fmt: skip
    """Moves all heads by one batch and returns their mean loss."""
    loss_of = what.loss
    targets = None if batch.targets is None else torch.from_numpy(batch.targets)
    teacher = to_logits(batch.answers, probabilities=what.probabilities)

    def learn(name: str) -> float:
        loss = _loss(answer_reduced(heads[name], batch.reduced[name]), targets, teacher, loss_of, what.config)
        loss.backward()
        return float(loss.detach())

    optimiser.zero_grad(set_to_none=True)
    total = sum(pool.map(learn, heads))
    optimiser.step()
    return total / len(heads)


@contextmanager
def _head_pool(heads: int) -> Iterator[ThreadPoolExecutor]:
    """Yields threads that each train a head on one core: heads know nothing of each other, so nobody waits, and what
    they learn does not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, heads)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _loss(logits: Tensor, targets: Tensor | None, teacher: Tensor, loss_of: Loss, config: FrozenConfig) -> Tensor:
    share = 1.0 if targets is None else config.distillation
    loss = logits.new_zeros(())
    if share > 0:
        loss = loss + share * loss_of.of_teacher(logits, teacher, config.temperature)
    if targets is not None and share < 1:
        loss = loss + (1 - share) * loss_of.of_targets(logits, targets)
    return loss


def _measure(heads: Mapping[str, nn.Module], held_out: FeatureCache | None, what: FrozenTask) -> dict[str, float]:
    """Returns the metric of every head, or without labels its agreement with the full network."""
    if held_out is None:
        return {}
    task = what.task
    metrics = {name: MetricSum(task) for name in heads}
    agreed = dict.fromkeys(heads, 0.0)
    labelled = False
    with torch.inference_mode():
        for positions in in_chunks(np.arange(len(held_out)), _MEASURED_ROWS):
            features = held_out.read(positions)
            labelled = features.targets is not None
            for name, head in heads.items():
                answers = (answer_reduced(head, features.reduced[name]).numpy(),)
                if features.targets is None:
                    agreed[name] += float(task.agreement(answers, (features.answers.numpy(),)).sum())
                else:
                    metrics[name].add(answers, features.targets)
    if labelled:
        return {name: metric.value for name, metric in metrics.items()}
    return {name: count / len(held_out) for name, count in agreed.items()}
