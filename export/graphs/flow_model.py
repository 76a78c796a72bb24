"""The dataflow of a network: nodes, the tensors between them, and what each tensor depends on. No onnx, no I/O.

Edges through ``Shape`` and ``Size`` are left out: they carry how many rows there are, not what the rows say. So tensors
fall into three kinds: *data* (depends on the values of a graph input), *shape* (depends on the shapes of graph inputs
only) and *constant* (depends on neither).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowNode:
    """A node of the dataflow graph.

    Attributes:
        name: for messages.
        inputs: tensors that it reads, those that its sub-graphs read included.
        outputs: tensors that it writes.
        heavy: does it do work that is worth a segment of its own?
        shape_only: it reads the shape of its inputs, not their values (``Shape``, ``Size``).
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    heavy: bool = False
    shape_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFlow:
    """A network as a DAG of tensors.

    Attributes:
        inputs: graph inputs (no constants).
        outputs: graph outputs.
        nodes: in topological order; names that are read but never written are constants.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[FlowNode, ...]


def tensor_kinds(flow: DataFlow) -> dict[str, str]:
    """Returns tensor -> ``data``, ``shape`` or ``constant``; names that are not listed are constants."""
    kinds = dict.fromkeys(flow.inputs, "data")
    for node in flow.nodes:
        read = {kinds.get(name, "constant") for name in node.inputs}
        kind = "data" if "data" in read else "shape" if "shape" in read else "constant"
        if node.shape_only and kind == "data":
            kind = "shape"
        kinds.update(dict.fromkeys(node.outputs, kind))
    return kinds
