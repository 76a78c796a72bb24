"""The state of a training after every epoch, as an artifact: parameters, optimiser, history. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import is_current, new_artifact, open_artifact, read_json, write_json
from artifacts.console import say

History = tuple[dict[str, Any], ...]


def record_epoch(
    history: History, *, epochs: int, phase: str, loss: float, seconds: float, accuracy: Mapping[str, float]
) -> History:
    """Says how an epoch went and returns the history with it; ``accuracy`` is per exit, on the calibrate part."""
    number = len(history) + 1
    say(
        f"epoch {number}/{epochs} ({phase}, {seconds:.0f} s): loss {loss:.3f}, "
        "accuracy on the calibrate part " + ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items())
    )
    entry = {
        "epoch": number, "phase": phase, "loss": loss, "accuracy": dict(accuracy), "seconds": round(seconds, 1),
    }  # fmt: skip
    return (*history, entry)


def save_checkpoint(
    folder: Path, net: nn.Module, optimiser: torch.optim.Optimizer, history: History,
    *, inputs: Mapping[str, str], parameters: Mapping[str, Any],
) -> None:  # fmt: skip
    """Replaces the checkpoint in ``folder``."""
    with new_artifact(folder, kind="checkpoint", inputs=inputs, parameters=parameters) as staging:
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, staging / "net.safetensors")
        save_file(_optimiser_tensors(net, optimiser), staging / "optimiser.safetensors")
        write_json(staging / "history.json", history)


def resume_checkpoint(
    folder: Path, net: nn.Module, optimiser: torch.optim.Optimizer,
    *, inputs: Mapping[str, str], parameters: Mapping[str, Any],
) -> History:  # fmt: skip
    """Loads the checkpoint in ``folder`` into ``net`` and ``optimiser`` if it belongs to this training.

    Returns:
        The history so far; empty when there is nothing to continue.
    """
    if not is_current(folder, kind="checkpoint", inputs=inputs, parameters=parameters):
        return ()
    artifact = open_artifact(folder, kind="checkpoint", remedy="python -m calibration")
    net.load_state_dict(load_file(artifact.path("net.safetensors")))
    stored = load_file(artifact.path("optimiser.safetensors"))
    for index, parameter in enumerate(net.parameters()):
        prefix = f"{index}."
        state = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        if state:
            optimiser.state[parameter].update(state)
    history = tuple(read_json(artifact.path("history.json"), list))
    say(f"continuing the training after epoch {len(history)}")
    return history


def _optimiser_tensors(net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value.contiguous()
        for index, parameter in enumerate(net.parameters())
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
