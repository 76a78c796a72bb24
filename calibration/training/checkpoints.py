"""Checkpoints: the state of a training after every epoch, as an artifact: parameters, optimiser, history. No pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import is_current, new_artifact, open_artifact, read_json, write_json

History = tuple[dict[str, Any], ...]


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

    def resume(self, net: nn.Module, optimiser: torch.optim.Optimizer) -> History:
        """Loads the state into ``net`` and ``optimiser`` if it belongs to this training.

        Returns:
            The history so far; empty when there is nothing to continue.
        """
        if not is_current(self.folder, kind="checkpoint", inputs=self.inputs, parameters=self.parameters):
            return ()
        artifact = open_artifact(self.folder, kind="checkpoint", remedy=f"remove {self.folder} and train again")
        net.load_state_dict(load_file(artifact.path("net.safetensors")))
        stored = load_file(artifact.path("optimiser.safetensors"))
        for index, parameter in enumerate(net.parameters()):
            prefix = f"{index}."
            state = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if state:
                optimiser.state[parameter].update(state)
        history = tuple(read_json(artifact.path("history.json"), list))
        self.report(f"continuing the training after epoch {len(history)}")
        return history

    def save(self, net: nn.Module, optimiser: torch.optim.Optimizer, history: History) -> None:
        """Replaces the state by that of now."""
        with new_artifact(
            self.folder, kind="checkpoint", inputs=self.inputs, parameters=self.parameters, notes=self.notes
        ) as staging:
            save_file({key: value.contiguous() for key, value in net.state_dict().items()}, staging / "net.safetensors")
            save_file(_optimiser_tensors(net, optimiser), staging / "optimiser.safetensors")
            write_json(staging / "history.json", history)


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
        f"epoch {number}/{epochs} ({result.phase}, {result.seconds:.0f} s): loss {result.loss:.3f}, "
        f"metric on the calibrate part {measured}"
    )
    entry = {
        "epoch": number, "phase": result.phase, "loss": result.loss, "accuracy": dict(result.metric),
        "seconds": round(result.seconds, 1),
    }  # fmt: skip
    return (*history, entry)


def _optimiser_tensors(net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value.contiguous()
        for index, parameter in enumerate(net.parameters())
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
