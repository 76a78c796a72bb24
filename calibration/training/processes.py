"""Processes: those that train together, as ``torchrun`` or ``accelerate launch`` started them, or this one alone.

Each takes its share of every batch, and after each step's backward pass gradients and the statistics of batch
normalisation are averaged over all of them: so they hold the same network at every moment, and any number of them
learns what one does, but for batch normalisation, which sees a share of the batch at a time. Process 0 leads: it alone
writes and reports. The others wait until it calls them (``calibration.training.following``). Devices, process groups
and mixed precision are those of the ``accelerate`` library.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast
from torch import Tensor, nn

from artifacts import InputError, UsageError, allowed_processors
from calibration.launch import ALONE, Launch
from calibration.training.checkpoints import Checkpoint, Progress

_PATIENCE = timedelta(days=7)  # the others wait while the first exports, measures and traces
_DISMISSED, _CALLED = 0, 1


class Processes:
    """The processes of one training, seen from one of them. Close it, or use it in a ``with``."""

    def __init__(
        self, mixed_precision: str = "no", launch: Launch = ALONE, *, workers: int | None = None
    ) -> None:  # fmt: skip
        """Waits until all of them are there.

        Args:
            mixed_precision: ``no``, ``bf16`` or ``fp16``.
            launch: which of them this is.
            workers: processes that decode samples for each of them, as for ``load_chunks``.

        Raises:
            UsageError: the device has no such precision, or others were started with this process unknown to it.
        """
        if mixed_precision == "fp16" and not torch.cuda.is_available():
            raise UsageError("--mixed-precision fp16 needs a GPU, and torch sees none here; bf16 does without")
        if Launch.read(os.environ).count != launch.count:  # accelerate would wait for processes that never come
            raise UsageError(
                "this is one of several processes that were started together, and trains alone: only python -m "
                "calibration is started by torchrun or accelerate launch; train with that first"
            )
        AcceleratorState._reset_state()  # of an earlier training in this process; its precision may differ
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=mixed_precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
        self.launch = launch
        self._workers = workers
        self._waiting = launch.count > 1
        if self._accelerator.num_processes != launch.count:
            raise UsageError(
                f"{launch.count} processes were started, and accelerate sees {self._accelerator.num_processes}: start "
                "them with torchrun --nproc-per-node N -m calibration, or with accelerate launch"
            )

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.launch.leads

    @property
    def workers(self) -> int | None:
        """The processes that decode for this one; where several share a machine, they share its processors too."""
        here = self.launch.here
        return self._workers if here == 1 or self._workers is not None else max(1, allowed_processors() // here)

    def call(self) -> None:
        """Lets the others begin; they find the run as it is now."""
        self._order(_CALLED)

    def dismiss(self) -> None:
        """Lets the others go if they were not called."""
        if self._waiting:
            self._order(_DISMISSED)

    def wait(self) -> bool:
        """Waits for the first process; returns whether there is anything to train."""
        return self._order(_DISMISSED) == _CALLED

    def _order(self, order: int) -> int:
        if self.launch.count == 1:
            return order
        self._waiting = False
        told: Tensor = broadcast(torch.tensor([order], device=self.device), from_process=0)
        return int(told.item())

    def check_same(self, words: str, what: str) -> None:
        """Compares a description with the first process's.

        Raises:
            InputError: they differ.
        """
        if self.launch.count == 1:
            return
        own = np.frombuffer(hashlib.sha256(words.encode()).digest(), np.int64)
        mine = torch.from_numpy(own.copy()).to(self.device)
        if not torch.equal(broadcast(mine.clone(), from_process=0), mine):
            raise InputError(
                f"process {self.launch.rank} of {self.launch.count} has not the same {what} as the first: let all "
                "machines share the run's folder, and read the same data by the same flags"
            )

    def resume(self, checkpoint: Checkpoint, net: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Loads a checkpoint in every process, and gives all of them the first one's network.

        Raises:
            InputError: not all of them see the same checkpoint, network and data.
        """
        progress = checkpoint.resume(net, optimiser)
        if self.launch.count > 1:
            origin = (sorted(checkpoint.inputs.items()), sorted(checkpoint.parameters.items()))
            self.check_same(repr((origin, len(progress.history), progress.steps)), "network, data and checkpoint")
            with torch.no_grad():
                for tensor in net.state_dict().values():
                    tensor.copy_(broadcast(tensor.clone(), from_process=0))
        return progress

    def seed(self, *numbers: int) -> None:
        """Seeds what torch draws in one step (dropout, for instance), differently in each process."""
        torch.manual_seed(int(np.random.SeedSequence([*numbers, self.launch.rank]).generate_state(1)[0]))

    def prepare(self, optimiser: torch.optim.Optimizer) -> Any:
        """Returns the optimiser whose ``step`` undoes the scaling of gradients in float16."""
        return self._accelerator.prepare_optimizer(optimiser)

    def autocast(self) -> AbstractContextManager[None]:
        """Computes in the mixed precision within the block, in this thread."""
        block: AbstractContextManager[None] = self._accelerator.autocast()
        return block

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled where the precision needs it."""
        self._accelerator.backward(loss)

    def average(self, net: nn.Module, loss: float) -> float:
        """Averages gradients and floating-point buffers over all processes; returns the mean of their losses."""
        if self.launch.count == 1:
            return loss
        tensors = [value.grad for value in net.parameters() if value.grad is not None]
        tensors += [value for value in net.buffers() if value.is_floating_point()]
        return self._average(tensors, loss)

    def clip(self, net: nn.Module, norm: float) -> None:
        """Scales the gradients down where their norm is larger, once their scaling is undone."""
        self._accelerator.clip_grad_norm_(net.parameters(), norm)

    def _average(self, tensors: Sequence[Tensor], loss: float) -> float:
        flat = torch.cat([torch.tensor([loss], device=self.device), *(value.float().reshape(-1) for value in tensors)])
        mean: Tensor = self._accelerator.reduce(flat, reduction="mean")
        pieces: Iterable[Tensor] = mean[1:].split([value.numel() for value in tensors])
        with torch.no_grad():
            for value, piece in zip(tensors, pieces, strict=True):
                value.copy_(piece.reshape(value.shape))
        return float(mean[0])

    def close(self) -> None:
        """Leaves the others; may be called twice."""
        if self.launch.count > 1:
            self._accelerator.end_training()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
