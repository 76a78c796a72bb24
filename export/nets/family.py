"""A family of networks: its options, its torch module, where that can be cut, and its exit heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from export.nets.heads import build_head
from export.nets.table import NetConfig


class Backbone(nn.Module):
    """A torch network that can be cut after its blocks."""

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the blocks in order, each under the prefix of its parameters."""
        raise NotImplementedError

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; answer).

        Further names are those of features that exit heads read besides those at their cut (``reads``).
        """
        raise NotImplementedError

    def adapt_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns this network's state dict for one of it, or of a relative whose weights it can start from."""
        return state

    def forward(self, x: Tensor) -> Tensor:
        """Returns the answer."""
        return self.forward_with_features(x)[1]


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
    """

    name: str
    config: Callable[..., NetConfig]
    build: Callable[[Any], Backbone]
    title: Callable[[Any], str]
    build_head: Callable[..., nn.Module] = build_head
    task: str = "classification"

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
