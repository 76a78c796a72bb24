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
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import Task, UsageError
from artifacts.console import track
from calibration.data.samples import in_chunks
from calibration.launch import Launch
from calibration.tracing.metrics import MetricSum
from calibration.training.checkpoints import Checkpoint, EpochResult, History, Keeper, Progress, record_epoch
from calibration.training.config import FrozenConfig
from calibration.training.features import FeatureCache, FeatureMaker, Features, fits_on_disk, join_features
from calibration.training.losses import to_logits
from calibration.training.minibatches import Augmentation, Share, training_indices
from calibration.training.objectives.loss import Loss
from calibration.training.processes import Processes
from export import answer_reduced

MEASURED_SAMPLES = 512
"""Samples of the calibrate part at most, evenly spaced, on which heads are measured after an epoch."""
_MOST_MEASURED = 25  # epochs
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
    heads: Mapping[str, nn.Module], maker: FeatureMaker, what: FrozenTask, checkpoint: Checkpoint,
    *, folder: Path, processes: Processes | None = None,
) -> History:  # fmt: skip
    """Trains ``heads`` in place.

    Args:
        heads: cut name -> head from features (B, ...) to logits (B, ...). They come back on the processor.
        maker: makes their features. The train part of its samples is trained on, the calibrate part only measured; its
            runner is closed once it is not needed any more.
        what: task and configuration.
        checkpoint: takes the state after every epoch and every few minutes; a matching one is continued.
        folder: where features may be kept meanwhile.
        processes: those that train together; each runs the backbone over its share of the train part, and the first
            alone measures and saves. ``None``: this one alone.

    Returns:
        Per epoch its number, phase, mean loss of a head, seconds and the metric of every exit on samples of the
        calibrate part: that of the task, or without labels the agreement with the full network.

    Raises:
        UsageError: there are too few samples to train on.
    """
    config = what.config
    processes = processes or Processes(config.mixed_precision)
    indices = training_indices(maker.samples, config)
    batch_size, rows = _size_batches(maker, len(indices), config, processes.launch)
    steps = len(indices) // batch_size
    epochs = config.count_epochs(steps)
    net = nn.ModuleList(heads.values()).to(processes.device)
    optimiser = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    progress = processes.resume(checkpoint, net, optimiser)
    history = progress.history
    with ExitStack() as stack:
        stack.callback(net.to, "cpu")
        if len(history) >= epochs:
            return history
        own = indices[processes.launch.rank :: processes.launch.count]
        source = _Source(maker=maker, indices=own, rows=rows, steps=steps, config=config, launch=processes.launch)
        source.keep(folder, stack, report=checkpoint.report)
        held_out = _keep_held_out(maker, folder) if processes.leads else None
        if held_out is not None:
            stack.enter_context(held_out)
        if source.kept:
            maker.runner.close()  # what its engines hold is needed for the heads now
        teaching = _Teaching(
            heads=heads, net=net, what=what, optimiser=optimiser, processes=processes, steps=steps, epochs=epochs,
            keeper=Keeper(checkpoint, net, optimiser, leads=processes.leads),
            pool=stack.enter_context(_head_pool(len(heads))),
        )  # fmt: skip
        for epoch in range(len(history), epochs):
            started = time.monotonic()
            loss = teaching.teach(source.batches(epoch, progress.steps), epoch, progress)
            if processes.leads:
                metric = teaching.measure(held_out) if held_out is not None and _is_due(epoch, epochs) else {}
                result = EpochResult(phase="frozen", loss=loss, seconds=time.monotonic() - started, metric=metric)
                history = record_epoch(history, result, epochs=epochs, report=checkpoint.report)
                teaching.keeper.keep(history)
            progress = Progress(history=history)
    return history


def _size_batches(maker: FeatureMaker, count: int, config: FrozenConfig, launch: Launch) -> tuple[int, int]:
    """Returns the samples per step of all processes together, and of this one.

    Raises:
        UsageError: there are fewer than two samples for every piece of a batch, or it cannot be divided.
    """
    parts = launch.count * config.accumulate
    batch_size = min(config.batch_size, count - count % parts)
    if batch_size < 2 * parts:
        raise UsageError(
            f"{maker.samples.name}: {count} samples to train on, in batches of {config.batch_size} at most; batch "
            f"normalisation needs at least {2 * parts}, two for each of {parts} parts of a batch"
            if parts > 1
            else f"{maker.samples.name} has one sample to train on; batch normalisation needs at least 2"
        )
    size = Share(count=launch.count, pieces=config.accumulate).size(batch_size)
    return batch_size, size * config.accumulate


class _Source:
    """One process's share of the train part as features, batch by batch: out of a cache, or made anew each epoch."""

    def __init__(
        self, *, maker: FeatureMaker, indices: np.ndarray, rows: int, steps: int, config: FrozenConfig, launch: Launch
    ) -> None:
        self._maker, self._indices, self._rows, self._steps = maker, indices, rows, steps
        self._config, self._launch = config, launch
        self._cache: FeatureCache | None = None

    def keep(self, folder: Path, stack: ExitStack, *, report: Callable[[str], None]) -> None:
        """Runs the backbone once over the train part and keeps what comes out, where that can be done."""
        count = len(self._indices)
        folder.mkdir(parents=True, exist_ok=True)
        if self._config.augment != "none":
            report(f"the backbone runs over {count} samples in every epoch, since images vary (--augment)")
            self._maker = self._maker.keeping_pixels(self._indices)
            return
        made = self._maker.make(self._indices)
        first = next(made)
        if not fits_on_disk(folder, first, count * self._launch.here):
            report(f"the backbone runs over {count} samples in every epoch: their features do not fit on the disk")
            made.close()
            self._maker = self._maker.keeping_pixels(self._indices)
            return
        cache = stack.enter_context(FeatureCache(folder, first))
        chunks = -(-count // self._maker.rows)
        running: Iterator[Features] = chain([first], made)
        if self._launch.leads:
            running = track(running, description="running the backbone", total=chunks)
        for features in running:
            cache.append(features)
        self._cache = cache

    @property
    def kept(self) -> bool:
        """Whether the backbone has done its work."""
        return self._cache is not None

    def batches(self, epoch: int, first: int) -> Iterator[Features]:
        """Yields the batches of an epoch from the ``first`` on, in an order of (seed, epoch) and the process alone; the
        last, smaller batch is left out."""
        seed = [self._config.seed, epoch, *([self._launch.rank] if self._launch.rank else [])]
        order = np.random.default_rng(seed).permutation(len(self._indices))[: self._steps * self._rows]
        if self._cache is not None:
            for positions in in_chunks(order[first * self._rows :], self._rows):
                yield self._cache.read(positions)
            return
        augmentation = Augmentation.of(self._config, epoch, self._launch.rank)
        chunk, over = divmod(first * self._rows, self._maker.rows)
        waiting: list[Features] = []
        for features in self._maker.make(self._indices[order], augmentation=augmentation, first=chunk):
            waiting.append(features.rows(over, None))
            over = 0
            joined = join_features(waiting)
            while len(joined.answers) >= self._rows:
                yield joined.rows(0, self._rows)
                joined = joined.rows(self._rows, None)
            waiting = [joined] if len(joined.answers) else []


def _keep_held_out(maker: FeatureMaker, folder: Path) -> FeatureCache | None:
    """Returns the features of a few samples of the calibrate part; ``None`` where it has none."""
    available = maker.samples.indices_of("calibrate")
    cache = None
    for features in maker.make(available[:: max(1, -(-len(available) // MEASURED_SAMPLES))]):
        cache = FeatureCache(folder, features) if cache is None else cache
        cache.append(features)
    return cache


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teaching:
    """All heads and all that changes them, step by step."""

    heads: Mapping[str, nn.Module]
    net: nn.Module
    what: FrozenTask
    optimiser: torch.optim.Optimizer
    processes: Processes
    keeper: Keeper
    pool: ThreadPoolExecutor
    steps: int
    epochs: int

    def teach(self, batches: Iterator[Features], epoch: int, progress: Progress) -> float:
        """Goes through an epoch, or through what is left of it; returns the mean loss of a head."""
        stepping = self.processes.prepare(self.optimiser)
        config = self.what.config
        self.net.train()
        if self.processes.leads:
            batches = track(batches, description=f"epoch {epoch + 1}", total=self.steps - progress.steps)
        total = progress.loss
        for done, batch in enumerate(batches, start=progress.steps):
            for group in self.optimiser.param_groups:
                passed = (epoch + (done + 0.5) / self.steps) / self.epochs
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
            self.processes.seed(config.seed, epoch, done)
            self.optimiser.zero_grad(set_to_none=True)
            rows = len(batch.answers) // config.accumulate
            starts = range(0, len(batch.answers), rows)
            loss = sum(self._learn(batch.rows(start, start + rows)) for start in starts)
            total += self.processes.average(self.net, loss)
            stepping.step()
            if done + 1 < self.steps:
                self.keeper.keep(progress.history, steps=done + 1, loss=total)
        self.net.eval()
        return total / self.steps

    def _learn(self, batch: Features) -> float:
        """Adds the gradients of one piece of a batch to all heads; returns its share of the batch's loss."""
        what, device = self.what, self.processes.device
        loss_of = what.loss
        targets = None if batch.targets is None else torch.from_numpy(batch.targets).to(device)
        teacher = to_logits(batch.answers.to(device), probabilities=what.probabilities)

        def learn(name: str) -> float:
            with self.processes.autocast():
                answers = answer_reduced(self.heads[name], batch.reduced[name].to(device))
                loss = _loss(answers, targets, teacher, loss_of, what.config) / what.config.accumulate
            self.processes.backward(loss)
            return float(loss.detach())

        return sum(self.pool.map(learn, self.heads)) / len(self.heads)

    def measure(self, held_out: FeatureCache) -> dict[str, float]:
        """Returns the metric of every head, or without labels its agreement with the full network."""
        task, device = self.what.task, self.processes.device
        metrics = {name: MetricSum(task) for name in self.heads}
        agreed = dict.fromkeys(self.heads, 0.0)

        @torch.inference_mode()
        def measure(name: str, features: Features) -> None:
            answers = (answer_reduced(self.heads[name], features.reduced[name].to(device)).cpu().numpy(),)
            if features.targets is None:
                agreed[name] += float(task.agreement(answers, (features.answers.numpy(),)).sum())
            else:
                metrics[name].add(answers, features.targets)

        labelled = False
        for positions in in_chunks(np.arange(len(held_out)), _MEASURED_ROWS):
            features = held_out.read(positions)
            labelled = features.targets is not None
            list(self.pool.map(partial(measure, features=features), self.heads))
        if labelled:
            return {name: metric.value for name, metric in metrics.items()}
        return {name: count / len(held_out) for name, count in agreed.items()}


def _is_due(epoch: int, epochs: int) -> bool:
    """Tells whether the heads are measured after an epoch: of very many epochs not after each."""
    every = -(-epochs // _MOST_MEASURED)
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


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
