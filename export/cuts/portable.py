"""Portable files: an exit plan as one ONNX graph, for any host that runs ONNX.

The stages of a bundle follow one another in one graph. Every row starts with the answer of the first stage; whoever is
below its threshold goes on (``GreaterOrEqual``, ``NonZero``, ``Gather``), and what later stages answer replaces what
stood there (``ScatterND``). So each row ends with the answer of the stage at which it left, in the order of the input.

What lies behind an exit is either guarded by ``If``, so that nothing of it runs for a batch of which no row is left, or
runs on no rows at all; the second form is a little faster where the operators of the network can do that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from artifacts import GraphSpec, TensorSpec
from export.cuts.stages import rename_inner, wider_opsets
from export.graphs.dataflow import name_of
from export.graphs.files import BATCH, finish_model, load_graph_file, save_graph
from export.graphs.surgery import add_constant, make_node

EXIT_INDEX, CONFIDENCE = "exit_index", "confidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableStage:
    """One stage of a plan.

    Attributes:
        graph: its interface.
        path: its ONNX file.
        threshold: rows with at least this confidence leave; ``None`` for the last stage.
    """

    graph: GraphSpec
    path: Path
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableOutline:
    """What a portable file is called and offers.

    Attributes:
        name: of the graph.
        inputs, outputs: of the whole network, in their order.
        guarded: whether ``If`` guards what lies behind an exit.
        metadata: what the file says of itself.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    guarded: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_portable(stages: Sequence[PortableStage], outline: PortableOutline, path: Path) -> GraphSpec:
    """Joins the stages of a plan into one ONNX file.

    Args:
        stages: in the order of the data flow; the last has no threshold.
        outline: name, interface and form.
        path: the file to write; weights of more than a gibibyte go into a file beside it.

    Returns:
        The interface: the network's inputs; its outputs, then ``exit_index`` (B,) int64, the position of the exit at
        which a row left, and ``confidence`` (B,) float32, with which it did. Where the network has an output of one of
        these names, an underscore is added.

    Raises:
        GraphError: the stages speak different opsets.
    """
    loaded = [load_graph_file(stage.path) for stage in stages]
    template = functools.reduce(wider_opsets, loaded)
    graph = ir.Graph([], [], nodes=[], name=outline.name, opset_imports={})
    tensors = {}
    for spec in outline.inputs:
        tensors[spec.name] = ir.Value(
            name=spec.name, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype))),
            shape=ir.Shape([BATCH, *spec.row_shape]),
        )  # fmt: skip
        graph.inputs.append(tensors[spec.name])
    for stage, model in zip(stages, loaded, strict=True):
        _claim_names(model.graph, stage.graph.name)
    joiner = _Joiner(stages, [model.graph for model in loaded], graph, guarded=outline.guarded)
    results = joiner.start(tensors)
    specs = (*outline.outputs, *_extra_outputs(outline.outputs))
    for spec, value in zip(specs, results, strict=True):
        graph.append(make_node("Identity", [value], spec.name))
        graph.outputs.append(graph[-1].outputs[0])
    model = finish_model(graph, template, name=outline.name, inputs=outline.inputs, outputs=specs)
    model.metadata_props.update(outline.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_graph(model, path)
    answers = tuple(spec.name for spec in outline.outputs)
    return GraphSpec(
        name=outline.name, file=path.name, inputs=outline.inputs, outputs=specs, confidence=specs[-1].name,
        answers=answers,
    )  # fmt: skip


def _extra_outputs(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, TensorSpec]:
    taken = {spec.name for spec in outputs}
    names = [name if name not in taken else f"{name}_" for name in (EXIT_INDEX, CONFIDENCE)]
    return (
        TensorSpec(name=names[0], dtype="int64", row_shape=()),
        TensorSpec(name=names[1], dtype="float32", row_shape=()),
    )


def _claim_names(graph: ir.Graph, prefix: str) -> None:
    """Puts everything that a stage names under its name, its outputs too; its inputs are other values' names."""
    rename_inner(graph, prefix)
    for value in graph.outputs:
        value.name = f"{prefix}/{value.name}"


class _Joiner:
    """Appends stage after stage; what is behind an exit goes into a graph of its own where that is guarded."""

    def __init__(
        self, stages: Sequence[PortableStage], graphs: Sequence[ir.Graph], whole: ir.Graph, *, guarded: bool
    ) -> None:
        self._stages, self._graphs, self._whole, self._guarded = stages, graphs, whole, guarded

    def start(self, tensors: dict[str, ir.Value]) -> list[ir.Value]:
        """Appends everything; returns answers, exit index and confidence of all rows."""
        made = self._inline(self._whole, 0, tensors)
        spec = self._stages[0].graph
        confidence = made[spec.confidence or ""]
        rows = self._append(self._whole, "Shape", [confidence], "rows/shape")
        nowhere = self._append(self._whole, "ConstantOfShape", [rows], "exit_index/first", value=ir.tensor([0]))
        results = [*(made[name] for name in spec.answers), nowhere, confidence]
        first = add_constant(self._whole, "rows/zero", np.array(0, np.int64))
        step = add_constant(self._whole, "rows/step", np.array(1, np.int64))
        count = self._append(self._whole, "Size", [confidence], "rows/count")
        rows = self._append(self._whole, "Range", [first, count, step], "rows/all")
        return self._go_on(self._whole, 0, {**tensors, **made}, results, rows)

    def _go_on(
        self, graph: ir.Graph, index: int, tensors: Mapping[str, ir.Value], results: list[ir.Value], rows: ir.Value
    ) -> list[ir.Value]:
        """Appends what follows the exit of a stage, for the rows that do not leave there."""
        stage = self._stages[index]
        if stage.threshold is None:
            return results
        name = f"{stage.graph.name}/leaving"
        flat = add_constant(self._whole, f"{name}/flat", np.array([-1], np.int64))
        limit = add_constant(self._whole, f"{name}/threshold", np.array(stage.threshold, np.float32))
        leaves = self._append(graph, "GreaterOrEqual", [tensors[stage.graph.confidence or ""], limit], name)
        stays = self._append(graph, "Not", [leaves], f"{name}/stays")
        places = self._append(graph, "NonZero", [stays], f"{name}/places")
        places = self._append(graph, "Reshape", [places, flat], f"{name}/stayed")
        if not self._guarded:
            return self._next_stage(graph, index + 1, tensors, results, (places, rows))
        zero = add_constant(self._whole, f"{name}/none", np.array(0, np.int64))
        count = self._append(graph, "Size", [places], f"{name}/count")
        some = self._append(graph, "Greater", [count, zero], f"{name}/some")
        onward = ir.Graph([], [], nodes=[], name=f"{name}/onward", opset_imports={})
        onward.outputs.extend(self._next_stage(onward, index + 1, tensors, results, (places, rows)))
        done = ir.Graph([], [], nodes=[], name=f"{name}/done", opset_imports={})
        for position, value in enumerate(results):
            done.outputs.append(self._append(done, "Identity", [value], f"{name}/kept_{position}"))
        branch = ir.node(
            "If", [some], {"then_branch": onward, "else_branch": done}, num_outputs=len(results), name=f"{name}/if"
        )
        for position, value in enumerate(branch.outputs):
            value.name = f"{name}/result_{position}"
        graph.append(branch)
        return list(branch.outputs)

    def _next_stage(
        self, graph: ir.Graph, index: int, tensors: Mapping[str, ir.Value], results: list[ir.Value],
        staying: tuple[ir.Value, ir.Value],
    ) -> list[ir.Value]:  # fmt: skip
        """Appends a stage for some rows, and writes what it answers over what they had.

        Args:
            graph: where.
            index: of the stage.
            tensors: what stands at the cut before it, by name.
            results: answers, exit index and confidence of all rows.
            staying: places among the rows at the cut, and the numbers of these rows in the batch.
        """
        places, rows = staying
        spec = self._stages[index].graph
        needed = {value.name for stage in self._stages[index:] for value in stage.graph.inputs} & set(tensors)
        here = {
            name: self._append(graph, "Gather", [tensors[name], places], f"{spec.name}/given/{name}", axis=0)
            for name in sorted(needed)
        }
        rows = self._append(graph, "Gather", [rows, places], f"{spec.name}/rows", axis=0)
        made = self._inline(graph, index, here)
        column = add_constant(self._whole, f"{spec.name}/column", np.array([-1, 1], np.int64))
        targets = self._append(graph, "Reshape", [rows, column], f"{spec.name}/targets")
        shape = self._append(graph, "Shape", [rows], f"{spec.name}/row_count")
        exit_index = self._append(
            graph, "ConstantOfShape", [shape], f"{spec.name}/exit_index", value=ir.tensor([index])
        )
        answers = [*(made[name] for name in spec.answers), exit_index, made[spec.confidence or ""]]
        written = [
            self._append(graph, "ScatterND", [old, targets, new], f"{spec.name}/written_{position}")
            for position, (old, new) in enumerate(zip(results, answers, strict=True))
        ]
        return self._go_on(graph, index, {**here, **made}, written, rows)

    def _inline(self, graph: ir.Graph, index: int, tensors: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Moves a stage's nodes into a graph; returns its outputs by the names that they had in the stage."""
        stage = self._graphs[index]
        made = {spec.name: value for spec, value in zip(self._stages[index].graph.outputs, stage.outputs, strict=True)}
        stage.outputs.clear()
        for value in list(stage.inputs):
            stage.inputs.remove(value)
            value.replace_all_uses_with(tensors[name_of(value)])
        for value in list(stage.initializers.values()):
            del stage.initializers[name_of(value)]
            self._whole.register_initializer(value)
        nodes = list(stage)
        for value in (value for node in nodes for value in node.outputs):
            value.shape = None  # its "batch" would be taken for that of the whole
        stage.remove(nodes)
        graph.extend(nodes)
        return made

    @staticmethod
    def _append(
        graph: ir.Graph, op: str, inputs: Sequence[ir.Value], output: str, **attributes: int | ir.TensorProtocol
    ) -> ir.Value:
        node = ir.node(op, list(inputs), attributes, name=output)
        node.outputs[0].name = output
        graph.append(node)
        return node.outputs[0]
