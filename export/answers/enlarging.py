"""Enlarging at the end of a dense network: what answers were before they were resized to the image."""

from __future__ import annotations

import onnx_ir as ir

_KEPT = (1.0, 1.0)  # the scales of batch and classes


def find_repetition(answer: ir.Value) -> ir.Node | None:
    """Returns the node that made an answer (B, C, H, W) by repeating pixels, so that whatever looks at one at a time
    may do so before it; ``None`` where another made it."""
    node = answer.producer()
    if node is None or _scales_of(node) is None or node.attributes.get_string("mode", "nearest") != "nearest":
        return None
    return node


def look_before(answer: ir.Value) -> tuple[ir.Value, tuple[int, int]]:
    """Returns an answer (B, C, H, W) as it was before it was enlarged, and its height and width.

    Neighbours of an enlarged answer say the same, so what is counted over all pixels is counted there as well.

    Args:
        answer: of known height and width.
    """
    shape = answer.shape
    height, width = (int(size) if isinstance(size, int) else 0 for size in (() if shape is None else shape)[2:])
    while (node := answer.producer()) is not None and (scales := _scales_of(node)) is not None:
        down, across = scales
        if node.inputs[0] is None or min(scales) < 1 or height % down or width % across:
            break
        answer, height, width = node.inputs[0], int(height / down), int(width / across)
    return answer, (height, width)


def _scales_of(node: ir.Node) -> tuple[float, float] | None:
    """Returns by how much a node resizes (B, C, H, W) along H and W; ``None`` where it does something else."""
    if node.op_type != "Resize" or len(node.inputs) < 3 or (given := node.inputs[2]) is None:
        return None
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    tensor = ir.convenience.get_const_tensor(given)
    scales = () if tensor is None else tuple(map(float, tensor.numpy()))
    if len(scales) != 4 or scales[:2] != _KEPT or "axes" in node.attributes:
        return None
    return scales[2], scales[3]
