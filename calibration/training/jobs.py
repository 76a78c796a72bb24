"""Training jobs: what every process of a training does between the call to it and the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from artifacts import Model, RunFolder, memory_limit
from calibration.data.samples import Samples
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import EngineChoice, SegmentRunner, fit_rows
from calibration.training.checkpoints import Checkpoint, History
from calibration.training.config import FrozenConfig, JointConfig, describe_training
from calibration.training.end_to_end import train_joint
from calibration.training.features import FeatureMaker
from calibration.training.frozen import FrozenTask, train_frozen
from calibration.training.losses import settle_loss
from calibration.training.minibatches import keep_pixels, training_indices
from calibration.training.processes import Processes
from export import MultiExitNet, build_missing_heads, rebuild_net

_PIXEL_SHARE = 0.5  # of the memory, for images that are decoded once


@dataclass(frozen=True, kw_only=True)  # no slots: the digests are worked out once
class TrainingJob:
    """What is trained where, and with whom.

    Attributes:
        run: the run's folder.
        model: its network, with its exit candidates settled.
        samples: what is trained on.
        engine: backend, and the threads of all processes on this machine together.
        options: task, memory, workers and messages.
        processes: those that train together.
    """

    run: RunFolder
    model: Model
    samples: Samples
    engine: EngineChoice
    options: CalibrationOptions
    processes: Processes

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The digests of what the training depends on besides its configuration."""
        return {"model": self.model.digest, **self.samples.digests()}

    @property
    def threads(self) -> int:
        """This process's share of the threads."""
        return max(1, self.engine.threads // self.processes.launch.here)

    @property
    def memory(self) -> int:
        """This process's share of the memory, in bytes."""
        return memory_limit(self.options.memory_gb) // self.processes.launch.here

    def describe(self) -> str:
        """Returns the words that say with whom and on what it is done; none for one process on the processor."""
        count, device = self.processes.launch.count, self.processes.device.type
        where = "" if device == "cpu" else f" on {device}"
        return where if count == 1 else f"{where} in {count} processes"

    def checkpoint(self, config: FrozenConfig | JointConfig) -> Checkpoint:
        """Returns where the training keeps its state."""
        return Checkpoint(
            folder=self.run.training / "checkpoint", inputs=self.inputs, parameters=describe_training(config),
            notes=self.options.notes(self.run), report=self.options.report,
        )  # fmt: skip


def train_heads(job: TrainingJob, config: FrozenConfig) -> tuple[dict[str, nn.Module], History]:
    """Trains exit heads where the model has none; returns them and how it went."""
    torch.set_num_threads(job.threads)
    heads = build_missing_heads(job.model)
    rows = fit_rows(job.model.spec, job.memory)
    engine = EngineChoice(backend=job.engine.backend, threads=job.threads)
    task, settings = job.options.task_of(job.model), job.model.spec.settings
    what = FrozenTask(
        task=task, loss=settle_loss(task, job.samples), config=config,
        probabilities=settings.get("confidence") == "max" and "answers" not in settings,
    )  # fmt: skip
    with SegmentRunner(job.model, job.run.engines, engine, rows=rows, with_heads=False) as runner:
        maker = FeatureMaker(
            heads=heads, runner=runner, rows=rows, samples=job.samples, workers=job.processes.workers,
            pixel_bytes=int(_PIXEL_SHARE * job.memory),
        )  # fmt: skip
        history = train_frozen(
            heads, maker, what, job.checkpoint(config), folder=job.run.training, processes=job.processes
        )  # fmt: skip
    return heads, history


def train_net(job: TrainingJob, config: JointConfig) -> tuple[MultiExitNet, History]:
    """Trains the network of the model with its exits; returns it and how it went."""
    torch.set_num_threads(job.threads)
    config = config.fit(job.model.spec.full.inputs, job.model.spec.task)
    net = rebuild_net(job.model)
    often = np.concatenate([training_indices(job.samples, config), job.samples.indices_of("calibrate")])
    samples = keep_pixels(job.samples, often, int(_PIXEL_SHARE * job.memory))
    history = train_joint(
        net, samples, job.options.task_of(job.model), config, job.checkpoint(config),
        processes=job.processes,
    )  # fmt: skip
    return net, history
