"""A family of networks: its options, its torch module, where that can be cut, and its exit heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from artifacts import TensorSpec
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
class Family:
    """A kind of network that can be built, trained and exported.

    Its options are a frozen dataclass, a ``NetConfig`` whose fields all have defaults: integers, strings or tuples of
    integers. Each is a flag of ``python -m export``, with the help that its metadata holds under ``help``, and a
    setting in ``model.json``.

    Attributes:
        name: as in the table of families, on the command line and in ``model.json``.
        config: the class of its options.
        build: draws an untrained network from options.
        title: names the network that options describe, for messages: ``ResNet-32``.
        build_head: builds the untrained exit head of a cut, as ``export.nets.heads.build_head``.
        task: what its answers mean.
        inputs: what a network with these options takes.
        head_kinds: the kinds of exit heads that it can have; the first is the default.
        open_weights: finds the weights of others by what ``--weights`` names, given the options of now; returns
            ``None`` where they are none that need more than being loaded.
        reads_text: it takes tokens, so that a tokenizer belongs to it.
    """

    name: str
    config: Callable[..., NetConfig]
    build: Callable[[Any], Backbone]
    title: Callable[[Any], str]
    build_head: Callable[..., nn.Module] = build_head
    task: str = "classification"
    inputs: Callable[[Any], tuple[TensorSpec, ...]] = image_inputs
    head_kinds: tuple[str, ...] = HEADS
    open_weights: Callable[[Path, Any], NetWeights | None] | None = None
    reads_text: bool = False

    def record(self, config: NetConfig) -> dict[str, str | int | float | bool]:
        """Returns options as settings of ``model.json``; a tuple is written as ``1,28,28``."""
        return {name: _to_text(value) if isinstance(value, tuple) else value for name, value in values_of(config)}

    def read(self, settings: Mapping[str, Any]) -> NetConfig:
        """Reads the options that ``record`` wrote among other settings; an option that is not there is the default."""
        defaults = dict(values_of(self.config()))
        given = {name: settings[name] for name in defaults if name in settings}
        return self.config(**{
            name: tuple(map(int, value.split(","))) if isinstance(defaults[name], tuple) else value
            for name, value in given.items()
        })  # fmt: skip


def values_of(config: Any) -> Sequence[tuple[str, Any]]:
    """Returns the fields of a dataclass and their values."""
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]


def _to_text(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
