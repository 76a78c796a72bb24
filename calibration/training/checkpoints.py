"""Checkpoints: the state of a training as an artifact: parameters, optimiser, history, progress. No pickle.

It is kept after every epoch, and every few minutes within one, so that a training of hours goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import is_current, new_artifact, open_artifact, read_json, write_json

History = tuple[dict[str, Any], ...]
SAVE_EVERY_S = 120.0
"""Seconds between two savings within an epoch."""
_PROGRESS_JSON = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training has come.

    Attributes:
        history: the epochs that are done.
        steps: of the epoch that is not.
        loss: the sum of their losses.
    """

    history: History = ()
    steps: int = 0
    loss: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where one training keeps its state, and what it depends on; one made from anything else is not continued.

    Attributes:
        folder: of the artifact.
        inputs: digests of everything that the training depends on besides its configuration.
        parameters: the configuration.
        notes: for the manifest's environment.
        report: receives notes for the user.
    """

    folder: Path
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    notes: Mapping[str, str]
    report: Callable[[str], None]

    def resume(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Loads the state into ``net`` and ``optimiser`` if it belongs to this training.

        Returns:
            How far it had come; nowhere when there is nothing to continue.
        """
        if not is_current(self.folder, kind="checkpoint", inputs=self.inputs, parameters=self.parameters):
            return Progress()
        artifact = open_artifact(self.folder, kind="checkpoint", remedy=f"remove {self.folder} and train again")
        net.load_state_dict(load_file(artifact.path("net.safetensors")))
        stored = load_file(artifact.path("optimiser.safetensors"))
        for index, parameter in enumerate(net.parameters()):
            prefix = f"{index}."
            state = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if state:
                optimiser.state[parameter].update(_beside(parameter, state))
        history = tuple(read_json(artifact.path("history.json"), list))
        steps, loss = 0, 0.0
        if (self.folder / _PROGRESS_JSON).is_file():  # not in those of older releases
            found = read_json(artifact.path(_PROGRESS_JSON), dict)
            steps, loss = int(found["steps"]), float(found["loss"])
        within = f" and {steps} steps of the next" if steps else ""
        self.report(f"continuing the training after epoch {len(history)}{within}")
        return Progress(history=history, steps=steps, loss=loss)

    def save(self, net: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Replaces the state by that of now."""
        with new_artifact(
            self.folder, kind="checkpoint", inputs=self.inputs, parameters=self.parameters, notes=self.notes
        ) as staging:
            save_file({key: value.contiguous() for key, value in net.state_dict().items()}, staging / "net.safetensors")
            save_file(_optimiser_tensors(net, optimiser), staging / "optimiser.safetensors")
            write_json(staging / "history.json", progress.history)
            write_json(staging / _PROGRESS_JSON, {"steps": progress.steps, "loss": progress.loss})


class Keeper:
    """Saves a training's checkpoint in the process that leads: when an epoch is done, and within one every so often."""

    def __init__(
        self, checkpoint: Checkpoint, net: nn.Module, optimiser: torch.optim.Optimizer, *, leads: bool
    ) -> None:  # fmt: skip
        self._checkpoint, self._net, self._optimiser, self._leads = checkpoint, net, optimiser, leads
        self._saved = time.monotonic()

    def keep(self, history: History, *, steps: int = 0, loss: float = 0.0) -> None:
        """Saves; within an epoch (``steps`` of it are done) only when it is time."""
        now = time.monotonic()
        if self._leads and (steps == 0 or now - self._saved >= SAVE_EVERY_S):
            self._checkpoint.save(
                self._net, self._optimiser, Progress(history=history, steps=steps, loss=loss)
            )  # fmt: skip
            self._saved = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """How one epoch went.

    Attributes:
        phase: ``frozen``, ``backbone`` or ``joint``.
        loss: mean over the steps.
        seconds: wall time.
        metric: exit name (and that of the final head) -> metric on the calibrate part.
    """

    phase: str
    loss: float
    seconds: float
    metric: Mapping[str, float]


def record_epoch(history: History, result: EpochResult, *, epochs: int, report: Callable[[str], None]) -> History:
    """Reports how an epoch went and returns the history with it."""
    number = len(history) + 1
    measured = ", ".join(f"{name} {value:.4f}" for name, value in result.metric.items())
    report(
        f"epoch {number}/{epochs} ({result.phase}, {result.seconds:.0f} s): loss {result.loss:.3f}"
        + (f", metric on the calibrate part {measured}" if measured else "")
    )
    entry = {
        "epoch": number, "phase": result.phase, "loss": result.loss, "accuracy": dict(result.metric),
        "seconds": round(result.seconds, 1),
    }  # fmt: skip
    return (*history, entry)


def _beside(parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what an optimiser knows of a parameter on its device; single numbers (steps) stay where they are."""
    return {key: value.to(parameter.device) if value.ndim else value for key, value in state.items()}


def _optimiser_tensors(net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value.contiguous()
        for index, parameter in enumerate(net.parameters())
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
