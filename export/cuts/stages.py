"""Stages: a run of segments and an exit head, merged into one graph.

The parts are joined where they name the same tensor. Everything else that a part names is its own, so it is put under
the part's name first: two parts may have been exported apart and use one name for two things.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import GraphError, GraphSpec, LearnedConfidence, Model, RunFolder, TensorSpec, UsageError, unknown_name
from export.confidence.learned import replace_confidence
from export.graphs.files import finish_model, load_graph_file, save_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outline:
    """The parts of a stage, in order, and its interface."""

    parts: tuple[GraphSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ending: GraphSpec


def merge_stage(
    model: Model, *, after: str | None, until: str | None, path: Path, confidence: LearnedConfidence | None = None
) -> GraphSpec:
    """Merges the segments between two cuts and the exit head (or the final head) into one ONNX file.

    Args:
        model: the model folder.
        after: the cut where the stage starts; ``None``: at the network's inputs.
        until: the cut whose exit head ends the stage; ``None``: on to the network's outputs.
        path: the file to write.
        confidence: in the place of the exit head's own; ``None``: that stays.

    Returns:
        The stage, called as the file: inputs are the tensors of cut ``after`` that are needed here; outputs the tensors
        of cut ``until`` that are made here, the answers and the confidence. A carried tensor that merely passes is
        neither; whoever chains stages keeps buffers by tensor name.

    Raises:
        UsageError: no such cut, or ``until`` does not lie behind ``after``.
        GraphError: the model has no segments, or cut ``until`` no trained exit head.
    """
    outline = _outline_stage(model, after, until)
    loaded = [(part, load_graph_file(model.path(part))) for part in outline.parts]
    ending = outline.ending
    if confidence is not None and ending.confidence is not None:
        replace_confidence(
            loaded[-1][1].graph, answer=ending.output(ending.answers[0]), confidence=ending.confidence,
            learned=confidence, probabilities=model.spec.settings.get("confidence") == "max",
        )  # fmt: skip
    merged = _join([(part.name, item.graph) for part, item in loaded], [spec.name for spec in outline.outputs])
    template = functools.reduce(wider_opsets, [item for _, item in loaded])
    specs = {spec.name: spec for part in outline.parts for spec in part.inputs}
    inputs = tuple(specs[value.name] for value in merged.inputs if value.name)
    stage = finish_model(merged, template, name=path.stem, inputs=inputs, outputs=outline.outputs)
    passes.DeduplicateInitializersPass()(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_graph(stage, path)
    has_length = any(spec.length_axes for spec in (*inputs, *outline.outputs))
    return GraphSpec(
        name=path.stem, file=path.name, inputs=inputs, outputs=outline.outputs,
        confidence=outline.ending.confidence, answers=outline.ending.answers,
        lengths=model.spec.lengths if has_length else (),
    )  # fmt: skip


def _outline_stage(model: Model, after: str | None, until: str | None) -> _Outline:
    spec = model.spec
    if spec.final_head is None:
        if after is not None or until is not None:
            raise unknown_name("cut", after or until or "", ())
        return _Outline(parts=(spec.full,), outputs=spec.full.outputs, ending=spec.full)
    first = 0 if after is None else spec.cut_index(after) + 1
    last = len(spec.cuts) if until is None else spec.cut_index(until)
    if last < first:
        raise UsageError(f"cut '{until}' does not lie behind cut '{after}', so there is no stage between them")
    segments = spec.segments[first : last + 1]
    if until is None:
        return _Outline(parts=(*segments, spec.final_head), outputs=spec.final_head.outputs, ending=spec.final_head)
    if until not in spec.heads:
        train = RunFolder(root=model.artifact.folder.parent).remedy("calibration")
        raise GraphError(
            f"cut '{until}' has no trained exit head. Train one with: {train}; "
            f"cuts with one: {', '.join(spec.heads) or 'none'}"
        )
    head = spec.heads[until]
    before = spec.full.inputs if after is None else spec.cuts[first - 1].tensors
    there = {tensor.name for tensor in before}
    made = [tensor for tensor in spec.cuts[last].tensors if tensor.name not in there]
    return _Outline(parts=(*segments, head), outputs=(*made, *head.outputs), ending=head)


def _join(parts: Sequence[tuple[str, ir.Graph]], outputs: Sequence[str]) -> ir.Graph:
    """Joins graphs where they name the same tensor; inputs that no earlier part makes become inputs of the whole."""
    merged = ir.Graph([], [], nodes=[], name="stage", opset_imports={})
    tensors: dict[str, ir.Value] = {}
    for name, graph in parts:
        rename_inner(graph, name)
        made = list(graph.outputs)
        graph.outputs.clear()
        for value in list(graph.inputs):
            graph.inputs.remove(value)
            if value.name in tensors:
                value.replace_all_uses_with(tensors[value.name])
            else:
                merged.inputs.append(value)
                tensors[value.name or ""] = value
        for value in list(graph.initializers.values()):
            del graph.initializers[value.name or ""]
            merged.register_initializer(value)
        nodes = list(graph)
        graph.remove(nodes)
        merged.extend(nodes)
        tensors.update({value.name or "": value for value in made})
    merged.outputs.extend(tensors[name] for name in outputs)
    return merged


def rename_inner(graph: ir.Graph, prefix: str) -> None:
    """Puts everything that a graph names, but its inputs and outputs, under a prefix."""
    shared = {value.name for value in (*graph.inputs, *graph.outputs)}
    for inner in (graph, *graph.subgraphs()):
        for value in list(inner.initializers.values()):
            if value.name not in shared:
                value.name = f"{prefix}/{value.name}"
        if inner is not graph:
            for value in inner.inputs:
                value.name = f"{prefix}/{value.name}"
        for node in inner:
            node.name = f"{prefix}/{node.name or node.outputs[0].name or node.op_type}"
            for value in node.outputs:
                if value.name and value.name not in shared:
                    value.name = f"{prefix}/{value.name}"


def wider_opsets(a: ir.Model, b: ir.Model) -> ir.Model:
    """Returns ``a`` with the opsets of both.

    Raises:
        GraphError: they speak different versions of one set of operators.
    """
    for domain, version in b.opset_imports.items():
        if a.opset_imports.setdefault(domain, version) != version:
            raise GraphError(
                f"segments and exit head speak different opsets of '{domain or 'ai.onnx'}' "
                f"({a.opset_imports[domain]} and {version}), so they cannot be one graph. "
                "Export the model and its heads again with one PAME"
            )
    a.ir_version = max(a.ir_version, b.ir_version)
    return a
