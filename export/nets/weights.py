"""Weights files: safetensors, torch's own without code, and arrays by name; into a net with exits and out of it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  its name only: nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import ArtifactError, GraphError, InputError, UsageError, load_arrays, unknown_name
from export.nets.multi_exit import MultiExitNet

_HEAD = "exits."
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # the keys under which trainers keep the weights
_PARALLEL = "module."  # what torch.nn.DataParallel puts before every key
_COUNTED = "num_batches_tracked"  # of batch normalisations in training; files of others often lack it
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".npz")
_SHOWN_REASON = 400


def head_state(name: str, head: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a cut's exit head under the keys of a weights file."""
    return {f"{_HEAD}{name}.{key}": value.contiguous() for key, value in head.state_dict().items()}


def split_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the backbone's part of a weights file, and that of its exit heads."""
    backbone = {key: value for key, value in state.items() if not key.startswith(_HEAD)}
    return backbone, {key: value for key, value in state.items() if key not in backbone}


def save_weights(path: Path, net: MultiExitNet, *, only: Collection[str] | None = None) -> None:
    """Writes one safetensors file: the backbone's keys as they are, a head's as ``exits.<cut>.<key>``.

    Args:
        path: the file.
        net: whose parameters are written.
        only: the cuts whose heads are written; ``None``: all.
    """
    state = {key: value.contiguous() for key, value in net.backbone.state_dict().items()}
    for name, head in zip(net.cut_names, net.heads, strict=True):
        if only is None or name in only:
            state.update(head_state(name, head))
    save_file(state, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads ``.safetensors``; ``.pth``, ``.pt`` or ``.th`` with ``weights_only``; or ``.npz`` of arrays by name.

    Code from the file never runs.

    Raises:
        UsageError: another kind of file, or none.
        InputError: the file is damaged or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: there is no such file; give one of {', '.join(_SUFFIXES)}, or random")
    if path.suffix not in _SUFFIXES:
        raise unknown_name("kind of weights file", path.suffix or path.name, _SUFFIXES)
    try:
        if path.suffix == ".safetensors":
            state = dict(load_file(path))
        elif path.suffix == ".npz":
            state = {key: torch.from_numpy(array) for key, array in load_arrays(path).items()}
        else:
            state = _unwrap(torch.load(path, map_location="cpu", weights_only=True), path)
    except UnpicklingError as error:
        raise InputError(f"{path} cannot be read as weights without running code from it: {error}") from error
    except (ArtifactError, OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    return state


def strip_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes the prefix of ``torch.nn.DataParallel`` off where every key has it."""
    every = all(key.startswith(_PARALLEL) for key in state)
    return {key.removeprefix(_PARALLEL) if every else key: value for key, value in state.items()}


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """Returns the state dict that a trainer saved, alone or among other things."""
    state = loaded
    if isinstance(loaded, dict):
        state = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f" but {', '.join(map(str, list(state)[:8]))}" if isinstance(state, dict) else ""
        raise InputError(f"{path} holds no state dict{keys}; save one with torch.save(net.state_dict(), ...)")
    return state


def load_weights(net: MultiExitNet, state: Mapping[str, Tensor], *, where: str) -> tuple[str, ...]:
    """Loads a state dict into the backbone, and into the heads that it holds.

    Returns:
        The cuts whose heads were loaded.

    Raises:
        GraphError: keys or shapes do not fit the network.
    """
    backbone, _ = split_heads(state)
    own = net.backbone.state_dict()
    loaded = []
    try:
        fitted = dict(net.backbone.adapt_state(backbone))
        fitted |= {key: own[key] for key in own if key.endswith(_COUNTED) and key not in fitted}
        net.backbone.load_state_dict(fitted)
        for name, head in zip(net.cut_names, net.heads, strict=True):
            prefix = f"{_HEAD}{name}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if part:
                head.load_state_dict(part)
                loaded.append(name)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), _SHOWN_REASON, placeholder=" ...")  # torch lists every key
        raise GraphError(
            f"{where} does not fit this network: {reason}. Check the options of the "
            "network, --input-shape, --every and --head"
        ) from error
    return tuple(loaded)
