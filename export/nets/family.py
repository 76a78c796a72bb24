"""A family of networks: its options, its torch module, where that can be cut, and its exit heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from artifacts import TensorSpec, UsageError
from export.nets.heads import build_head
from export.nets.table import HEADS, NetConfig

INPUT = "input"
"""The input of the families that take images."""


class Backbone(nn.Module):
    """A torch network that can be cut after its blocks."""

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the blocks in order, each under the prefix of its parameters."""
        raise NotImplementedError

    def forward_with_features(self, *inputs: Any, **_: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; answer).

        Names that are none of the blocks' are tensors that every cut carries, and that heads may read.
        """
        raise NotImplementedError

    def adapt_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns this network's state dict for one of it, or of a relative whose weights it can start from."""
        return state

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the answer."""
        return self.forward_with_features(*inputs)[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetWeights:
    """Weights of others for a family, and what stands beside them.

    Attributes:
        file: of the tensors.
        config: the family's options, as the weights want them.
        adapt: (the file's tensors, those of the untrained network) -> (tensors under the network's own names, the names
            of those that the file lacks and that stay as they were drawn).
        classes: names of the classes, in the order of the answers; none where they are not known.
    """

    file: Path
    config: Any
    adapt: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    classes: tuple[str, ...] = ()


def image_inputs(config: Any) -> tuple[TensorSpec, ...]:
    """Returns the input of a family that takes images: float32 rows of the option ``input_shape``."""
    return (TensorSpec(name=INPUT, dtype="float32", row_shape=tuple(config.input_shape)),)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FittedState:
    """What a state dict of whatever origin is of.

    Attributes:
        options: of the family, as far as the state dict decides them.
        channels: of an image.
        size: height and width that networks of this kind usually take, for images of a size that nobody names.
        state: the state dict in the family's names.
    """

    options: Mapping[str, Any]
    channels: int
    size: int
    state: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of network that can be built, trained and exported.

    Its options are a frozen dataclass, a ``NetConfig`` whose fields all have defaults: integers, strings or tuples of
    integers. Each is a flag of ``python -m export``, with the help that its metadata holds under ``help``, and a
    setting in ``model.json``. One that came after a release has ``recorded_if_changed`` in its metadata: it is no
    setting while it is the default, so that models and weights of that release stay what they are.

    Attributes:
        name: as in the table of families, on the command line and in ``model.json``.
        config: the class of its options.
        build: draws an untrained network from options.
        title: names the network that options describe, for messages: ``ResNet-32``.
        build_head: builds the untrained exit head of a cut, as ``export.nets.heads.build_head``.
        task: what its answers mean.
        answers: what it answers with, one of ``export.options.ANSWERS``; ``None``: what the net says as it is.
        inputs: what a network with these options takes.
        head_kinds: the kinds of exit heads that it can have; the first is the default.
        open_weights: finds the weights of others by what ``--weights`` names, given the options of now; returns
            ``None`` where they are none that need more than being loaded.
        reads_text: it takes tokens, so that a tokenizer belongs to it.
        fit_state: tells what a state dict is of, ``GraphError`` where it is not of this family; ``None``: the options
            alone say what the weights are of.
    """

    name: str
    config: Callable[..., NetConfig]
    build: Callable[[Any], Backbone]
    title: Callable[[Any], str]
    build_head: Callable[..., nn.Module] = build_head
    task: str = "classification"
    answers: str | None = None
    inputs: Callable[[Any], tuple[TensorSpec, ...]] = image_inputs
    head_kinds: tuple[str, ...] = HEADS
    open_weights: Callable[[Path, Any], NetWeights | None] | None = None
    reads_text: bool = False
    fit_state: Callable[[Mapping[str, Tensor]], FittedState] | None = None

    def record(self, config: NetConfig) -> dict[str, str | int | float | bool]:
        """Returns options as settings of ``model.json``; a tuple is written as ``1,28,28``."""
        unsaid = {item.name for item in _fields(config) if item.metadata.get("recorded_if_changed")}
        return {
            name: _to_text(value) if isinstance(value, tuple) else value
            for name, value in values_of(config)
            if name not in unsaid or value != getattr(self.config(), name)
        }

    def read(self, settings: Mapping[str, Any]) -> NetConfig:
        """Reads the options that ``record`` wrote among other settings; an option that is not there is the default."""
        defaults = dict(values_of(self.config()))
        given = {name: settings[name] for name in defaults if name in settings}
        return self.config(**{
            name: tuple(map(int, value.split(","))) if isinstance(defaults[name], tuple) else value
            for name, value in given.items()
        })  # fmt: skip


def settle_options(family: Family, given: Any, fitted: FittedState, *, where: str) -> NetConfig:
    """Returns the options of the network that a state dict is of.

    Args:
        family: the family.
        given: the options that were asked for; those at their defaults count as not given.
        fitted: what the state dict says.
        where: names it in messages.

    Raises:
        UsageError: an option was given that the state dict contradicts.
    """
    defaults: Any = family.config()
    for name, found in fitted.options.items():
        wanted = getattr(given, name)
        if wanted not in (getattr(defaults, name), found):
            raise UsageError(
                f"--{name.replace('_', '-')} {wanted}: {where} is of a network with {name} {found}; leave the "
                "flag out, or name other weights"
            )
    shape, unsaid = given.input_shape, given.input_shape == defaults.input_shape
    if shape[0] != fitted.channels and not unsaid:
        raise UsageError(
            f"--input-shape {_to_text(shape)}: {where} is of a network for images of {fitted.channels} channels"
        )
    # images of 28x28 are as good as the usual 32x32, but not as 224x224
    if unsaid and (shape[0] != fitted.channels or 2 * max(shape[1:]) < fitted.size):
        shape = (fitted.channels, fitted.size, fitted.size)
    return replace_options(given, **fitted.options, input_shape=shape)


def replace_options(config: Any, **values: Any) -> NetConfig:
    """Returns options with some of them replaced."""
    replaced: NetConfig = dataclasses.replace(config, **values)
    return replaced


def check_image_options(config: Any) -> None:
    """Raises ``UsageError`` for classes or images that no classifier of images can have."""
    if config.classes < 2:
        raise UsageError(f"--classes {config.classes}: a classifier needs at least 2")
    if len(config.input_shape) != 3 or min(config.input_shape) < 1:
        raise UsageError(f"--input-shape {config.input_shape}: expected channels,height,width, e.g. 3,224,224")


def _fields(config: Any) -> Sequence[dataclasses.Field[Any]]:
    return dataclasses.fields(config)


def values_of(config: Any) -> Sequence[tuple[str, Any]]:
    """Returns the fields of a dataclass and their values."""
    return [(field.name, getattr(config, field.name)) for field in _fields(config)]


def _to_text(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
