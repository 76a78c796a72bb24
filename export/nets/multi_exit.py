"""Multi-exit nets: a torch backbone with its exit heads, for end-to-end training and for the export of a family."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  its name only: nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import Cut, GraphError, InputError, TensorSpec, UsageError, unknown_name
from export.cuts.thinning import thin
from export.nets.family import Backbone
from export.nets.heads import answer_features, build_head


class MultiExitNet(nn.Module):
    """A backbone and an exit head after some of its blocks.

    Shapes: input (B, ...) float32; output (cut name -> (B, classes, ...) logits, final (B, classes, ...) logits).
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.cut_names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features, final = self.backbone.forward_with_features(x)
        exits = zip(self.cut_names, self.heads, strict=True)
        return {name: answer_features(head, features, name) for name, head in exits}, final


def backbone_cuts(backbone: Backbone, input_shape: tuple[int, ...]) -> tuple[Cut, ...]:
    """Returns the cuts after the backbone's blocks, in order, with the shapes of their features."""
    was_training = backbone.training
    with torch.no_grad():
        features, _ = backbone.eval().forward_with_features(torch.zeros(2, *input_shape))
    backbone.train(was_training)
    return tuple(
        Cut(name=name, main=TensorSpec(name=name, dtype="float32", row_shape=tuple(features[name].shape[1:])))
        for name, _ in backbone.blocks()
    )


def attach_heads(
    backbone: Backbone, input_shape: tuple[int, ...], *, classes: int, kind: str, every: int = 1
) -> MultiExitNet:
    """Puts an untrained exit head after every ``every``-th block but the last.

    Raises:
        UsageError: ``every`` leaves no candidate.
    """
    cuts = backbone_cuts(backbone, input_shape)
    chosen = thin(cuts[:-1], every)
    heads = {cut.name: build_head(cut, cuts[cuts.index(cut) + 1 :], classes=classes, kind=kind) for cut in chosen}
    return MultiExitNet(backbone, heads)


_HEAD = "exits."
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # the keys under which trainers keep the weights
_SHOWN_REASON = 400


def head_state(name: str, head: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a cut's exit head under the keys of a weights file."""
    return {f"{_HEAD}{name}.{key}": value.contiguous() for key, value in head.state_dict().items()}


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
    """Reads ``.safetensors``, or ``.pth``/``.pt`` with ``weights_only``; never runs code from the file.

    Raises:
        UsageError: another kind of file, or none.
        InputError: the file is damaged or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix in {".pth", ".pt"}:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict):
                state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
            if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
                keys = f" but {', '.join(map(str, list(state)[:8]))}" if isinstance(state, dict) else ""
                raise InputError(f"{path} holds no state dict{keys}; save one with torch.save(net.state_dict(), ...)")
            return state
    except UnpicklingError as error:
        raise InputError(f"{path} cannot be read as weights without running code from it: {error}") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    raise unknown_name("kind of weights file", path.suffix or path.name, [".safetensors", ".pth", ".pt"])


def load_weights(net: MultiExitNet, state: Mapping[str, Tensor], *, where: str) -> tuple[str, ...]:
    """Loads a state dict into the backbone, and into the heads that it holds.

    Returns:
        The cuts whose heads were loaded.

    Raises:
        GraphError: keys or shapes do not fit the network.
    """
    backbone = {key: value for key, value in state.items() if not key.startswith(_HEAD)}
    loaded = []
    try:
        net.backbone.load_state_dict(net.backbone.adapt_state(backbone))
        for name, head in zip(net.cut_names, net.heads, strict=True):
            prefix = f"{_HEAD}{name}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if part:
                head.load_state_dict(part)
                loaded.append(name)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), _SHOWN_REASON, placeholder=" ...")  # torch lists every key
        raise GraphError(
            f"{where} does not fit this network: {reason}. Check --depth, --classes, --input-shape and --head"
        ) from error
    return tuple(loaded)
