"""Nodes that go back to float32, because quantising them costs too much: greedily, by measured loss and time.

Each heavy node is tried in float32 alone, all others quantised: what it wins back of the error, and the time that it
costs, are measured on the whole network. Nodes go back in the order of what they win back for their time. The number
of them is the least with which no more answers change than allowed, found by halving.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from artifacts import GraphError
from export.graphs.probing import open_graph

_ROUNDS = 9
_LEAST_COST = 0.005  # of the network's time: less cannot be measured


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A quantised network that was tried out.

    Attributes:
        model: the network.
        changed: share of the answers that are others than in float32.
        error: mean squared error of the answers, relative to their mean square.
    """

    model: ir.Model
    changed: float
    error: float

    @property
    def badness(self) -> tuple[float, float]:
        """What trials are ordered by."""
        return self.changed, self.error


class Judge(Protocol):
    """What tries networks out."""

    def try_out(self, model: ir.Model, /) -> Trial:
        """Returns a network with what it changes."""

    def time(self, models: Sequence[ir.Model], /) -> Sequence[float]:
        """Returns the milliseconds of networks, measured in turns."""


def choose_float(
    quantised: Trial, heavy: Sequence[str], *, limit: float, judge: Judge, make: Callable[[Sequence[str]], ir.Model]
) -> tuple[Trial, tuple[str, ...]]:
    """Puts nodes back into float32 until no more answers change than allowed.

    Args:
        quantised: with all nodes quantised.
        heavy: names of the heavy nodes, in order.
        limit: share of the answers that may change.
        judge: tries networks out.
        make: returns the network with some heavy nodes in float32.

    Returns:
        The network, and the nodes that went back.

    Raises:
        GraphError: more answers change even with half of the nodes in float32.
    """
    if quantised.changed <= limit:
        return quantised, ()
    order = _order_nodes(quantised, heavy, judge, make)
    low, high = 0, max(1, len(order) // 2)
    best = judge.try_out(make(order[:high]))
    if best.changed > limit:
        raise GraphError(
            f"the network cannot be had in int8: {quantised.changed:.2%} of its answers change, and {best.changed:.2%} "
            f"with half of its heavy nodes in float32, where {limit:.2%} may. Export it in fp32"
        )
    while high - low > 1:
        middle = (low + high) // 2
        trial = judge.try_out(make(order[:middle]))
        if trial.changed <= limit:
            high, best = middle, trial
        else:
            low = middle
    return best, tuple(order[:high])


def _order_nodes(
    quantised: Trial, heavy: Sequence[str], judge: Judge, make: Callable[[Sequence[str]], ir.Model]
) -> list[str]:
    """Returns the nodes in the order of the error that they win back for the time that they cost."""
    worth = {}
    for node in heavy:
        trial = judge.try_out(make([node]))
        now_ms, then_ms = judge.time([quantised.model, trial.model])
        worth[node] = (quantised.error - trial.error) / max(then_ms - now_ms, _LEAST_COST * now_ms)
    return sorted(heavy, key=lambda node: -worth[node])


def time_in_turns(
    models: Sequence[ir.Model], rows: Mapping[str, np.ndarray], *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Returns the median milliseconds of a run of each network on ONNX Runtime, measured in turns."""
    runners = [open_graph(model) for model in models]
    try:
        taken: list[list[float]] = []
        for _ in range(_ROUNDS + 1):
            taken.append([])
            for runner in runners:
                start = clock()
                runner.run(rows)
                taken[-1].append((clock() - start) * 1000)
    finally:
        for runner in runners:
            runner.close()
    found: list[float] = np.median(taken[1:], axis=0).tolist()  # the first round warms up
    return found
