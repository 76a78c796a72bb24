"""Taking bytes: the scaling and normalisation of images becomes the first step of a network, which then takes uint8.

A host sends a quarter of the bytes and does no arithmetic of its own. The nodes do what ``Preprocessing.normalise``
does, in the same order and in float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from artifacts import GraphError, Preprocessing, TensorSpec, UsageError
from export.graphs.files import BATCH
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCES, draw_rows, open_graph, relative_error
from export.graphs.surgery import add_constant, make_node, prepend_nodes

BYTES = "uint8"
_PROVED = 8


def take_bytes(loaded: LoadedGraph, preprocessing: Preprocessing | None) -> LoadedGraph:
    """Returns a graph that takes the pixels of images as they are.

    Args:
        loaded: takes one image of floats; changed in place.
        preprocessing: how it wants its images.

    Returns:
        The graph with its input of the same name, layout and channel order, in uint8; ``pixels`` says that it
        normalises.

    Raises:
        UsageError: nothing says how it wants its images, or it takes no floats.
        GraphError: it answers otherwise than before.
    """
    if preprocessing is None:
        raise UsageError(
            "--input uint8: nothing says how the network wants its images, so that cannot become part of it; "
            "name it with --preprocess NAME|FILE"
        )
    spec = loaded.inputs[0]
    if np.dtype(spec.dtype).kind != "f":
        raise UsageError(f"--input uint8: the network's input '{spec.name}' is {spec.dtype} already; omit the flag")
    outside, inside = replace(preprocessing, in_graph=False), replace(preprocessing, in_graph=True)
    taking = replace(
        loaded, inputs=(replace(spec, dtype=BYTES),), pixels=inside, highest=np.iinfo(BYTES).max,
        notes=(*loaded.notes, "images are scaled and normalised inside the network, which takes bytes"),
    )  # fmt: skip
    rows = draw_rows(taking, _PROVED)
    with open_graph(loaded.model) as runner:
        expected = runner.run({spec.name: outside.prepare(rows[spec.name], spec.dtype)})
    _prepend(loaded.model.graph, spec, outside)
    with open_graph(taking.model) as runner:
        found = runner.run(rows)
    for name, answer in expected.items():
        absolute, relative = relative_error(found[name], answer)
        if relative > TOLERANCES[loaded.rounding]:
            raise GraphError(
                f"--input uint8: output '{name}' of the network that takes bytes differs by {absolute:.3g}, "
                f"{relative:.1e} of its magnitude, from that which takes floats. Please report it with the network"
            )
    return taking


def _prepend(graph: ir.Graph, spec: TensorSpec, preprocessing: Preprocessing) -> None:
    """Puts cast, scaling and shift before everything that reads the graph's only input."""
    floats = graph.inputs[0]
    factor, shift = preprocessing.factors()
    stem = f"{spec.name}/normalised"
    value = ir.Value(
        name=spec.name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([BATCH, *spec.row_shape])
    )  # fmt: skip
    nodes = [make_node("Cast", [value], f"{stem}/cast", to=ir.DataType.FLOAT)]
    for op, array, neutral in (("Mul", factor, 1), ("Sub", shift, 0)):
        if (array != neutral).any():
            constant = add_constant(graph, f"{stem}/{op.lower()}_by", array)
            nodes.append(make_node(op, [nodes[-1].outputs[0], constant], f"{stem}/{op.lower()}"))
    if spec.dtype != "float32":
        nodes.append(make_node("Cast", [nodes[-1].outputs[0]], f"{stem}/half", to=floats.dtype or ir.DataType.FLOAT))
    floats.replace_all_uses_with(nodes[-1].outputs[0], replace_graph_outputs=True)
    graph.inputs[0] = value
    prepend_nodes(graph, nodes)
