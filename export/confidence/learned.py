"""Learned confidence in a graph: the nodes of ``artifacts.LearnedConfidence``, in the place of another confidence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from artifacts import LEAST_PROBABILITY, GraphError, LearnedConfidence, TensorSpec
from export.graphs.dataflow import name_of
from export.graphs.surgery import add_constant, make_node


def replace_confidence(
    graph: ir.Graph, *, answer: TensorSpec, confidence: str, learned: LearnedConfidence, probabilities: bool
) -> None:
    """Computes an output of a graph, the confidence of an answer, by a learned model; the nodes of the old one go.

    Args:
        graph: an exit head's; changed in place.
        answer: its output (B, K), logits or probabilities.
        confidence: name of its output (B,) float32, which keeps name and place.
        learned: the model.
        probabilities: whether the answer holds probabilities.

    Raises:
        GraphError: there are no such outputs, or the model knows more classes than the answer has.
    """
    outputs = {name_of(output): output for output in graph.outputs}
    if answer.name not in outputs or confidence not in outputs:
        raise GraphError(f"{graph.name} has the outputs {', '.join(outputs)}; expected {answer.name} and {confidence}")
    classes = answer.row_shape[0]
    if len(learned.class_biases) > classes:
        raise GraphError(
            f"'{answer.name}' answers with {classes} classes, the learned confidence knows "
            f"{len(learned.class_biases)}: it is of another network. Plan again"
        )
    old = outputs[confidence]
    old.name = f"{confidence}/given"
    writer = _Writer(graph, confidence)
    value = writer.write(outputs[answer.name], learned, classes=classes, probabilities=probabilities)
    value.name, value.type, value.shape = confidence, old.type, old.shape
    graph.outputs[:] = [value if output is old else output for output in graph.outputs]
    _remove_unread(graph, old.producer())


def _remove_unread(graph: ir.Graph, node: ir.Node | None) -> None:
    """Removes a node that nothing reads any more, and then what only it read."""
    if node is None or any(output.is_graph_output() or output.uses() for output in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for earlier in before:
        _remove_unread(graph, earlier)


class _Writer:
    """Appends the nodes of a learned confidence to a graph."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix

    def write(self, answer: ir.Value, learned: LearnedConfidence, *, classes: int, probabilities: bool) -> ir.Value:
        """Appends all of them; returns the confidence (B,)."""
        if answer.dtype not in (None, ir.DataType.FLOAT):
            answer = self._add("Cast", [answer], "float32", to=ir.DataType.FLOAT)
        if probabilities:
            shares = answer
            floor = self._constant("least", np.float32(LEAST_PROBABILITY))
            logs = self._add("Log", [self._add("Max", [shares, floor], "floored")], "logs")
        else:
            logs = self._add("LogSoftmax", [answer], "logs", axis=-1)
            shares = self._add("Exp", [logs], "shares")
        last = self._constant("axis", np.array([1], np.int64))
        first, second = self._best_two(logs)
        largest, next_largest = self._add("Exp", [first], "largest"), self._add("Exp", [second], "second_share")
        margin = self._add("Sub", [largest, next_largest], "margin")
        products = self._add("Mul", [shares, logs], "products")
        entropy = self._add("Neg", [self._add("ReduceSum", [products, last], "sum", keepdims=1)], "entropy")
        gap = self._add("Sub", [first, second], "gap")
        features = self._add("Concat", [largest, margin, entropy, gap], "features", axis=1)
        weights = self._constant("weights", np.array(learned.weights, np.float32)[:, None])
        bias = self._constant("bias", np.array([learned.bias], np.float32))
        total = self._add("Gemm", [features, weights, bias], "total")
        if learned.class_biases:
            biases = np.zeros(classes, np.float32)  # a class that no sample had in fitting counts 0
            biases[: len(learned.class_biases)] = learned.class_biases
            table = self._constant("class_biases", biases)
            chosen = self._add("ArgMax", [answer], "class", axis=1, keepdims=1)
            total = self._add("Add", [total, self._add("Gather", [table, chosen], "class_bias", axis=0)], "sum_total")
        shape = self._constant("shape", np.array([-1], np.int64))
        return self._add("Reshape", [self._add("Sigmoid", [total], "sigmoid"), shape], "value")

    def _best_two(self, logs: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the largest and the second largest of every row, (B, 1) each."""
        two = self._constant("two", np.array([2], np.int64))
        node = ir.node("TopK", [logs, two], {"axis": 1}, num_outputs=2)
        node.outputs[0].name, node.outputs[1].name = f"{self._prefix}/best", f"{self._prefix}/best_at"
        self._graph.append(node)
        axis = self._constant("axis_of_best", np.array([1], np.int64))
        ends = [self._constant(f"at_{place}", np.array([place], np.int64)) for place in range(3)]
        pair = [
            self._add("Slice", [node.outputs[0], ends[place], ends[place + 1], axis], f"best_{place}")
            for place in range(2)
        ]
        return pair[0], pair[1]

    def _constant(self, name: str, array: np.ndarray | np.float32) -> ir.Value:
        return add_constant(self._graph, f"{self._prefix}/{name}", np.asarray(array))

    def _add(self, op: str, inputs: list[ir.Value], name: str, **attributes: int | ir.DataType) -> ir.Value:
        node = make_node(op, inputs, f"{self._prefix}/{name}", **attributes)
        self._graph.append(node)
        return node.outputs[0]
