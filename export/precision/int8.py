"""The pass ``int8``: convolutions and matrix products of a network compute in int8 (``onnxruntime.quantization``).

A network becomes a Q/DQ graph, of static ranges, by the following rules:

1. Weights are int8 with a scale per output channel; activations are uint8 with a scale and a zero point per tensor, so
   that a row never depends on its neighbours. In the form ``int8-symmetric`` activations are int8, their zero point is
   0, and biases stay in float32: TensorRT takes nothing else, and ONNX Runtime on the processor is slow at it.
2. Only what leads to the answers is quantised, from the first heavy node to the last but one: exit heads, the last
   heavy node (the classifier) and all behind it, confidences among them, stay in float32.
3. Light nodes (``_LIGHT_OPS``) between heavy ones with weights are quantised with them, unless they lead to an
   operator of ``_DELICATE_OPS`` before the next heavy node: masks and scores before a softmax, and what a
   normalisation reads.
4. A tensor at a cut is quantised on both sides: the part before ends with its ``QuantizeLinear``, the part behind
   begins with its ``DequantizeLinear``. The quantised tensor takes over the name: cuts are called as in float32.
5. Ranges are found on rows of the train part, by each method of ``quantising.METHODS``; the one counts with which the
   answers of the whole network change least, on other rows.
6. Where more than ``LOSS_LIMIT`` of the answers change, heavy nodes go back to float32, first those that win back the
   most for the time they cost (``export.precision.floating``), until no more change.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import GraphError
from export.graphs.dataflow import is_heavy, name_of
from export.graphs.loading import LoadedGraph
from export.graphs.probing import open_graph
from export.precision.floating import Trial, choose_float
from export.precision.quantising import METHODS, Quantiser, fold_normalisations

LOSS_LIMIT = 0.01
"""The share of answers that may change before nodes go back to float32."""
CLOSE = 0.05
"""How far an answer that is no choice may lie off and count as unchanged, relative to the largest answer."""
LEAST_ROWS = 16
_CALIBRATED = 512
_BATCH = 32
_HEAVY_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LIGHT_OPS = frozenset({
    "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad", "Relu",
    "Reshape", "Resize", "Sigmoid", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_DELICATE_OPS = frozenset({
    "Erf", "Exp", "Gelu", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "Pow",
    "RMSNormalization", "Softmax", "Sqrt", "Tanh",
})  # fmt: skip

Agreement = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Report:
    """What quantisation did to a network.

    Attributes:
        method: by which the ranges were found.
        changed: share of the answers that are others than in float32, on rows of the train part.
        error: root of the mean squared error of the answers, relative to their own.
        changed_by_method: the same before nodes went back to float32, for each method.
        rows: how many rows that was measured on.
        float_nodes: heavy nodes that went back to float32.
        time_ratio: measured time of the quantised network, of that in float32; on ONNX Runtime, on this machine.
    """

    method: str
    changed: float
    error: float
    changed_by_method: Mapping[str, float]
    rows: int
    float_nodes: tuple[str, ...]
    time_ratio: float

    def describe(self) -> str:
        """Returns the report in one line."""
        kept = f"; {len(self.float_nodes)} heavy nodes stay in float32" if self.float_nodes else ""
        return (
            f"int8: ranges by {self.method}; {self.changed:.2%} of {self.rows} answers are not those in fp32{kept}; "
            f"on ONNX Runtime here it takes {self.time_ratio:.2f} of the time in fp32"
        )


def quantise(
    loaded: LoadedGraph, crossing: Collection[str], answers: Sequence[str], rows: Mapping[str, np.ndarray],
    agreement: Agreement | None, *, symmetric: bool = False,
) -> tuple[LoadedGraph, Int8Report]:  # fmt: skip
    """Quantises a network by the rules of this module.

    Args:
        loaded: the graph in float32; left as it is.
        crossing: outputs of the graph that are tensors at cuts.
        answers: the outputs that the network answers with.
        rows: input name -> (n, ...): real rows; the first are for the ranges, the others to measure what changes.
        agreement: of answers with those in float32, (n,) in [0, 1], as ``Task.agreement``; ``None``, and for a single
            number in place of a choice: the same up to ``CLOSE``.
        symmetric: the form ``int8-symmetric``.

    Raises:
        GraphError: there is nothing to quantise, too few rows, or the network cannot be had in int8.
    """
    count = len(next(iter(rows.values())))
    if count < LEAST_ROWS:
        raise GraphError(
            f"--precision int8: ranges are found on rows of the train part, and there are {count}; at least "
            f"{LEAST_ROWS} are needed. Name more data with --data"
        )
    network = _Network.of(loaded, crossing, answers)
    ranged = min(_CALIBRATED, count // 2)
    before, behind = (
        {name: array[part] for name, array in rows.items()} for part in (slice(ranged), slice(ranged, None))
    )
    with tempfile.TemporaryDirectory(prefix="pame-int8-") as folder:
        quantiser = Quantiser(network.model, Path(folder), symmetric=symmetric)
        judge = _Judge(network.model, answers, behind, agreement)
        trials = {}
        for method in METHODS:
            quantiser.find_ranges(method, before, sorted({*_HEAVY_OPS, *_LIGHT_OPS}))
            trials[method] = judge.try_out(quantiser.quantise(method, network.nodes))
        method = min(METHODS, key=lambda name: trials[name].badness)
        found, kept = choose_float(
            trials[method], network.heavy, limit=LOSS_LIMIT, judge=judge,
            make=lambda kept: quantiser.quantise(method, network.nodes - set(kept)),
        )  # fmt: skip
    precision = "int8-symmetric" if symmetric else "int8"
    report = Int8Report(
        method=method, changed=found.changed, error=math.sqrt(found.error),
        changed_by_method={name: trial.changed for name, trial in trials.items()},
        rows=count - ranged, float_nodes=kept, time_ratio=judge.time_ratio(found),
    )  # fmt: skip
    return replace(loaded, model=network.finish(found.model), precision=precision, rounding="int8"), report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Network:
    """A network ready for the quantiser.

    Attributes:
        model: a copy without the outputs at cuts.
        outputs: names of all outputs, in order.
        nodes: names of the nodes to quantise.
        heavy: the heavy ones among them, in order.
    """

    model: ir.Model
    outputs: tuple[str, ...]
    nodes: frozenset[str]
    heavy: tuple[str, ...]

    @classmethod
    def of(cls, loaded: LoadedGraph, crossing: Collection[str], answers: Sequence[str]) -> _Network:
        model = fold_normalisations(loaded.model)
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name not in crossing]
        graph = model.graph
        for index, node in enumerate(graph):
            node.name = f"{index}_{node.op_type}"  # files may name nodes twice, or not at all
        nodes = choose_nodes(graph, answers)
        heavy = tuple(str(node.name) for node in graph if node.name in nodes and node.op_type in _HEAVY_OPS)
        if not heavy:
            raise GraphError(
                "the network cannot be had in int8: no convolution or matrix product with weights of float32 leads to "
                "another one. Export it in fp32"
            )
        return cls(model=model, outputs=loaded.outputs, nodes=nodes, heavy=heavy)

    def finish(self, quantised: ir.Model) -> ir.Model:
        """Returns a quantised network with all outputs, its quantised tensors under their own names (rule 4)."""
        graph = quantised.graph
        inputs = set(graph.inputs)
        for node in list(graph):
            source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
            if source is not None and source not in inputs and not source.is_graph_output():
                name = name_of(source)
                source.name = f"{name}/float"
                node.outputs[0].name = name
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        graph.outputs[:] = [values[name] for name in self.outputs]
        for step in (passes.TopologicalSortPass(), passes.ClearMetadataAndDocStringPass()):
            step(quantised)
        quantised.metadata_props.clear()
        for value in values.values():
            if value not in inputs:
                value.shape = None
        return quantised


def choose_nodes(graph: ir.Graph, answers: Sequence[str]) -> frozenset[str]:
    """Returns the names of the nodes to quantise (rules 2 and 3)."""
    leading = _nodes_towards(graph, answers)
    heavy = _choose_heavy(leading)
    weighted = {node for node in leading if is_heavy(node) and _has_float_weights(node)}
    towards: set[ir.Node] = set()  # what leads to a heavy node with weights, before any other heavy one
    delicate: set[ir.Node] = set()  # and what leads to a delicate one, before any heavy one
    for node in reversed(leading):
        readers = [user for value in node.outputs for user, _ in value.uses()]
        if node.op_type in _DELICATE_OPS or any(user in delicate and not is_heavy(user) for user in readers):
            delicate.add(node)
        elif not is_heavy(node) and any(user in weighted or user in towards for user in readers):
            towards.add(node)
    behind: set[ir.Node] = set()  # what is made of the result of a heavy node that is quantised
    for node in leading:
        if node in heavy or node in behind:
            behind.update(user for value in node.outputs for user, _ in value.uses())
    light = {node for node in behind & towards if node.op_type in _LIGHT_OPS and not node.domain}
    return frozenset(str(node.name) for node in heavy | light)


def _choose_heavy(leading: Sequence[ir.Node]) -> set[ir.Node]:
    """Returns the heavy nodes with weights in float32 that lead to another heavy node."""
    followed: set[ir.Node] = set()
    for node in reversed(leading):
        readers = [user for value in node.outputs for user, _ in value.uses()]
        if any(is_heavy(user) or user in followed for user in readers):
            followed.add(node)
    return {node for node in followed
            if node.op_type in _HEAVY_OPS and not node.domain and _has_float_weights(node)}  # fmt: skip


def _nodes_towards(graph: ir.Graph, answers: Sequence[str]) -> list[ir.Node]:
    """Returns the nodes that lead to some tensors, in topological order."""
    needed: set[str] = set(answers)
    found = []
    for node in reversed(list(graph)):
        if needed & {value.name for value in node.outputs if value.name}:
            found.append(node)
            needed.update(name_of(value) for value in node.inputs if value is not None)
    return found[::-1]


def _has_float_weights(node: ir.Node) -> bool:
    weights = node.inputs[1] if len(node.inputs) > 1 else None
    return weights is not None and weights.const_value is not None and weights.const_value.dtype == ir.DataType.FLOAT


def _are_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> np.ndarray:
    """Returns (n,): the share of the outputs of each row that are as they were, up to ``CLOSE``."""
    same = [
        np.abs(mine - own).reshape(len(own), -1).max(axis=1) <= CLOSE * np.abs(own).max()
        for mine, own in zip(found, expected, strict=True)
    ]
    close: np.ndarray = np.mean(same, axis=0)
    return close


class _Judge:
    """The whole network in float32 on the rows that decide, and what a quantised one makes of them."""

    def __init__(
        self, model: ir.Model, answers: Sequence[str], rows: Mapping[str, np.ndarray], agreement: Agreement | None
    ) -> None:
        self._model, self._names, self._rows = model, list(answers), rows
        self._expected = self._answer(model)
        is_choice = self._expected[0].ndim > 1 and self._expected[0].shape[1] > 1
        self._agreement = agreement if agreement is not None and is_choice else _are_close

    def try_out(self, model: ir.Model) -> Trial:
        """Returns a quantised network with what it changes."""
        found = self._answer(model)
        pairs = list(zip(found, self._expected, strict=True))
        finite = all(np.isfinite(mine).all() for mine, _ in pairs if mine.dtype.kind == "f")
        if not finite:
            return Trial(model=model, changed=1.0, error=float("inf"))
        error = sum(float(((mine - own).astype(np.float64) ** 2).mean()) for mine, own in pairs)
        scale = sum(float((own.astype(np.float64) ** 2).mean()) for _, own in pairs)
        changed = 1 - float(self._agreement(found, self._expected).mean(dtype=np.float64))
        return Trial(model=model, changed=changed, error=error / scale if scale else 0.0)

    def time_ratio(self, trial: Trial) -> float:
        """Returns the measured time of a quantised network, of that in float32."""
        whole_ms, quantised_ms = self.time([self._model, trial.model])
        return quantised_ms / whole_ms

    def time(self, models: Sequence[ir.Model]) -> list[float]:
        """Returns the milliseconds of networks for a batch of the rows, measured in turns."""
        from export.precision.floating import time_in_turns

        return time_in_turns(models, {name: array[:_BATCH] for name, array in self._rows.items()})

    def _answer(self, model: ir.Model) -> list[np.ndarray]:
        count = len(next(iter(self._rows.values())))
        with open_graph(model) as runner:
            runs = [
                runner.run({name: array[start : start + _BATCH] for name, array in self._rows.items()},
                           outputs=self._names)
                for start in range(0, count, _BATCH)
            ]  # fmt: skip
        return [np.concatenate([run[name] for run in runs]) for name in self._names]
