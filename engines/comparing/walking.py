"""Walking through the tensors of two sides in the order of the graph: how far apart they are, and where that arises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.comparing.runners import Side, run_side


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorGap:
    """How far apart one tensor is on two sides; plain data.

    Attributes:
        tensor: its name.
        operator: the type of the node that makes it.
        error: the largest difference, relative to the largest magnitude on the first side.
        risen: by how much that is more than the largest error among what the node reads.
    """

    tensor: str
    operator: str
    error: float
    risen: float


def walk(first: Side, second: Side, inputs: Mapping[str, np.ndarray]) -> list[TensorGap]:
    """Compares every tensor of floats that both sides have, in the order of the first side's graph.

    All of them are outputs for that, so that a backend fuses fewer nodes than it does in an engine as it ships.

    Args:
        first: the reference.
        second: the other one; another backend over the same file, or the same network in another precision.
        inputs: rows, name -> (n, ...).
    """
    nodes, there = list(read_nodes(first.onnx)), {name for _, name, _ in read_nodes(second.onnx)}
    names = [name for _, name, _ in nodes if name in there]
    mine, theirs = run_side(first, inputs, names), run_side(second, inputs, names)
    errors: dict[str, float] = {}
    gaps = []
    for operator, name, sources in nodes:
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape:
            errors[name] = max((errors.get(source, 0.0) for source in sources), default=0.0)
            continue
        if mine[name].dtype.kind != "f" or not mine[name].size:
            continue
        errors[name] = relative_error(mine[name], theirs[name])
        before = max((errors.get(source, 0.0) for source in sources), default=0.0)
        gaps.append(TensorGap(tensor=name, operator=operator, error=errors[name], risen=errors[name] - before))
    return gaps


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference of two arrays, relative to the largest magnitude of the first; NaN on one side
    only is infinitely far."""
    one, two = reference.astype(np.float64), other.astype(np.float64)
    missing = np.isnan(one)
    if not np.array_equal(missing, np.isnan(two)):
        return float("inf")
    apart = np.abs(np.subtract(one, two, where=one != two, out=np.zeros_like(one)))  # equal infinities are not apart
    scale = float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0))
    return float(np.max(apart[~missing], initial=0.0)) / (scale or 1.0)


def read_nodes(onnx: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (operator, output, inputs) of every node of a file's main graph, constants left out."""
    import onnx as library

    graph: Any = library.load(str(onnx), load_external_data=False).graph
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        for output in node.output:
            if output:
                yield node.op_type, output, tuple(node.input)
