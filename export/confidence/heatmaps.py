"""Confidence of heat maps, one per joint: how high their peaks are, brought to one number.

A map holds the logits of one softmax over all its places, so a peak is the probability of its place.

``mean-peak``   the mean of the peaks.
``min-peak``    the lowest peak: one joint that is not found keeps the whole pose.
``share-peak``  the share of joints whose peak is above 0.1: the rule of the PAME paper, more than n values above p.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.confidence.dense import add_above
from export.confidence.recipe import LOGITS
from export.graphs.surgery import add_constant, make_node

_SURE = 0.1


def is_heat_maps(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold one map per joint, (n, J, H, W)?"""
    del linear
    return values.ndim == 4 and values.dtype.kind == "f"


def add_mean_peak(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The mean of the peaks over the joints."""
    return _bring_together(graph, "ReduceMean", add_peaks(graph, answer, terms, name), name)


def add_min_peak(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The lowest peak."""
    return _bring_together(graph, "ReduceMin", add_peaks(graph, answer, terms, name), name)


def add_share_peak(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The share of joints whose peak is above 0.1."""
    above = add_above(graph, add_peaks(graph, answer, terms, name), _SURE, name)
    return _bring_together(graph, "ReduceMean", above, name)


def add_peaks(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """Appends the peak of each map, the probability of its highest place: (B, J)."""
    shape = add_constant(graph, f"{name}/shape", np.array([0, 0, -1], np.int64))
    flat = make_node("Reshape", [answer, shape], f"{name}/flat")
    graph.append(flat)
    current = flat.outputs[0]
    if terms == LOGITS:
        softmax = make_node("Softmax", [current], f"{name}/probabilities", axis=-1)
        graph.append(softmax)
        current = softmax.outputs[0]
    return _bring_together(graph, "ReduceMax", current, f"{name}/peaks")


def _bring_together(graph: ir.Graph, how: str, values: ir.Value, name: str) -> ir.Value:
    axes = add_constant(graph, f"{name}/last", np.array([-1], np.int64))
    node = make_node(how, [values, axes], name, keepdims=0)
    graph.append(node)
    return node.outputs[0]


HEAT_MAPS: dict[str, Callable[[ir.Graph, ir.Value, str, str], ir.Value]] = {
    "mean-peak": add_mean_peak,
    "min-peak": add_min_peak,
    "share-peak": add_share_peak,
}
