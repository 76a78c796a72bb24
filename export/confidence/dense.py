"""Confidence of dense answers, one class per pixel: the largest probability at each pixel, brought to one number.

``mean-pixel``      their mean.
``quantile-pixel``  what a tenth of the pixels do not reach: how sure the network is where it is not.
``share-pixel``     the share of pixels that are above 0.7: the rule of the PAME paper, more than n pixels above p.
``margin-pixel``    the mean distance from the largest probability to the second largest.

Answers are looked at before they are enlarged to the image, and large ones on every second or fourth pixel in either
direction: neighbours say the same, and the whole would cost as much as the exit head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.answers.enlarging import look_before
from export.confidence.recipe import LOGITS
from export.graphs.surgery import add_constant, make_node

_SURE = 0.7
_LOW = 0.1
_LOOKED_AT = 24  # pixels along the shorter side, at least, where steps are taken
_STEPS = (4, 2)


def is_dense(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold one number per class and pixel, (n, C, H, W)?"""
    del linear
    return values.ndim == 4 and values.shape[1] >= 2 and values.dtype.kind == "f"


def add_mean_pixel(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The mean over the pixels of their largest probability."""
    return _average(graph, _largest(graph, answer, terms, name), name)


def add_quantile_pixel(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The largest probability that a tenth of the pixels do not exceed."""
    pixels = _thin_out(answer).pixels
    largest = _largest(graph, answer, terms, name)
    count = add_constant(graph, f"{name}/count", np.array([max(1, round(_LOW * pixels))], np.int64))
    lowest = make_node("TopK", [largest, count], f"{name}/lowest", outputs=2, axis=-1, largest=0)
    graph.append(lowest)
    axes = add_constant(graph, f"{name}/last", np.array([-1], np.int64))
    highest = make_node("ReduceMax", [lowest.outputs[0], axes], name, keepdims=0)
    graph.append(highest)
    return highest.outputs[0]


def add_share_pixel(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The share of pixels whose largest probability is above 0.7."""
    return _average(graph, add_above(graph, _largest(graph, answer, terms, name), _SURE, name), name)


def add_margin_pixel(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The mean over the pixels of the distance between their two largest probabilities."""
    flat = _flatten(graph, answer, name)
    if terms == LOGITS:
        softmax = make_node("Softmax", [flat], f"{name}/probabilities", axis=1)
        graph.append(softmax)
        flat = softmax.outputs[0]
    two = add_constant(graph, f"{name}/two", np.array([2], np.int64))
    top = make_node("TopK", [flat, two], f"{name}/top", outputs=2, axis=1)
    signs = add_constant(graph, f"{name}/signs", np.array([[[1.0], [-1.0]]], np.float32))
    signed = make_node("Mul", [top.outputs[0], signs], f"{name}/signed")
    axes = add_constant(graph, f"{name}/classes", np.array([1], np.int64))
    margin = make_node("ReduceSum", [signed.outputs[0], axes], f"{name}/margin", keepdims=0)
    graph.extend([top, signed, margin])
    return _average(graph, margin.outputs[0], name)


def add_above(graph: ir.Graph, values: ir.Value, level: float, name: str) -> ir.Value:
    """Appends 1 where values are above a level and 0 elsewhere, in float32."""
    border = add_constant(graph, f"{name}/level", np.array(level, np.float32))
    above = make_node("Greater", [values, border], f"{name}/above")
    counted = make_node("Cast", [above.outputs[0]], f"{name}/counted", to=ir.DataType.FLOAT)
    graph.extend([above, counted])
    return counted.outputs[0]


def _average(graph: ir.Graph, values: ir.Value, name: str) -> ir.Value:
    axes = add_constant(graph, f"{name}/all", np.array([-1], np.int64))
    mean = make_node("ReduceMean", [values, axes], name, keepdims=0)
    graph.append(mean)
    return mean.outputs[0]


def _largest(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """Appends the largest probability of each pixel that is looked at: (B, pixels).

    Of logits that is ``1 / sum(exp(z - max z))``; a softmax of which the maximum is taken would cost twice as much.
    """
    axes = add_constant(graph, f"{name}/axes", np.array([1], np.int64))
    flat = _flatten(graph, answer, name)
    if terms != LOGITS:
        largest = make_node("ReduceMax", [flat, axes], f"{name}/largest", keepdims=0)
        graph.append(largest)
        return largest.outputs[0]
    highest = make_node("ReduceMax", [flat, axes], f"{name}/highest", keepdims=1)
    below = make_node("Sub", [flat, highest.outputs[0]], f"{name}/below")
    powers = make_node("Exp", [below.outputs[0]], f"{name}/powers")
    total = make_node("ReduceSum", [powers.outputs[0], axes], f"{name}/total", keepdims=0)
    largest = make_node("Reciprocal", [total.outputs[0]], f"{name}/largest")
    graph.extend([highest, below, powers, total, largest])
    return largest.outputs[0]


class _Thinned(NamedTuple):
    """The pixels that are looked at: of which tensor, how far apart along either side, and how many."""

    answer: ir.Value
    step: int
    pixels: int


def _thin_out(answer: ir.Value) -> _Thinned:
    before, (height, width) = look_before(answer)
    step = next((step for step in _STEPS if min(height, width) >= step * _LOOKED_AT), 1)
    return _Thinned(before, step, -(-height // step) * -(-width // step))


def _flatten(graph: ir.Graph, answer: ir.Value, name: str) -> ir.Value:
    """Appends the answers of the pixels that are looked at: (B, C, pixels)."""
    current, step, _ = _thin_out(answer)
    if step > 1:
        numbers = {"starts": [0, 0], "ends": [np.iinfo(np.int64).max] * 2, "axes": [2, 3], "steps": [step, step]}
        ends = [
            add_constant(graph, f"{name}/slice_{what}", np.array(values, np.int64)) for what, values in numbers.items()
        ]
        thinned = make_node("Slice", [current, *ends], f"{name}/thinned")
        graph.append(thinned)
        current = thinned.outputs[0]
    shape = add_constant(graph, f"{name}/shape", np.array([0, 0, -1], np.int64))
    flat = make_node("Reshape", [current, shape], f"{name}/flat")
    graph.append(flat)
    return flat.outputs[0]


DENSE: dict[str, Callable[[ir.Graph, ir.Value, str, str], ir.Value]] = {
    "mean-pixel": add_mean_pixel,
    "quantile-pixel": add_quantile_pixel,
    "share-pixel": add_share_pixel,
    "margin-pixel": add_margin_pixel,
}
