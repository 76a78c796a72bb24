"""Outputs of a graph: those that are no answers are cut off before they are made; what is not numbers is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from artifacts import GraphError, TensorSpec
from export.graphs.dataflow import ML, describe_flow, name_of
from export.graphs.flow_model import tensor_kinds

_CLASSIFIERS = ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")
_RENAMING = ("Cast", "Flatten", "Identity", "LabelEncoder", "Reshape", "Squeeze", "Unsqueeze")
_LOOKING_UP = ("ArrayFeatureExtractor", "Gather")


def take_off_maps(graph: ir.Graph) -> tuple[str, ...]:
    """Replaces outputs of ZipMap, a map per row, by the probabilities that it reads.

    To be done before the opset is converted: onnx converts no graph that answers with maps.

    Returns:
        One note per output.
    """
    notes = []
    for index, output in enumerate(graph.outputs):
        node = output.producer()
        if node is None or (node.domain, node.op_type) != (ML, "ZipMap") or node.inputs[0] is None:
            continue
        probabilities = node.inputs[0]
        probabilities.type = probabilities.type or ir.TensorType(ir.DataType.FLOAT)  # ZipMap reads nothing else
        notes.append(f"output '{name_of(output)}', a map per row, cut off at its probabilities '{probabilities.name}'")
        graph.outputs[index] = probabilities
    return tuple(notes)


def take_off_labels(graph: ir.Graph) -> tuple[str, ...]:
    """Takes off the class of a row, a number or a word, where the one other output has a number for every class.

    So write sklearn-onnx and onnxmltools: the class comes from an ArgMax, or from a classifier that is one operator.

    Returns:
        One note per output.
    """
    labels = [value for value in graph.outputs if _find_scores(value) is not None]
    others = [value for value in graph.outputs if value not in labels]
    if len(others) != 1 or others[0].dtype is None or not others[0].dtype.is_floating_point():
        return ()
    classes = find_classes(graph)
    graph.outputs[:] = others
    numbers = classes if classes and isinstance(classes[0], int) and classes != tuple(range(len(classes))) else ()
    order = (
        f", in the order {', '.join(map(str, numbers))}; data labels them by their places, from 0" if numbers else ""
    )
    return tuple(
        f"output '{name_of(value)}', the class of a row, left off: '{name_of(others[0])}' has a number for every "
        f"class{order}"
        for value in labels
    )


def find_classes(graph: ir.Graph) -> tuple[str, ...] | tuple[int, ...]:
    """Returns the classes as an output says them, in the order of the numbers that it chooses among; else none."""
    for value in graph.outputs:
        node = value.producer()
        while node is not None:
            if classes := _read_classes(node):
                return classes
            step = _step_back(node)
            node = None if step is None else step.producer()
    return ()


def take_off_constants(graph: ir.Graph, where: str) -> tuple[str, ...]:
    """Takes off outputs that say nothing about a row: constants, such as the names of classes, and inputs handed on.

    Returns:
        One note per output.

    Raises:
        GraphError: there are no others.
    """
    graph.outputs[:] = list(dict.fromkeys(graph.outputs))  # some name one twice
    names = tuple(name_of(value) for value in graph.outputs)
    kinds = tensor_kinds(describe_flow(graph, names))
    idle = {name: "a constant" for name in names if kinds.get(name, "constant") == "constant"}
    idle |= {name_of(value): "an input" for value in graph.inputs if name_of(value) in names}
    if len(idle) == len(names):
        raise GraphError(f"{where}: its outputs {', '.join(names)} do not depend on its inputs")
    graph.outputs[:] = [value for value in graph.outputs if name_of(value) not in idle]
    return tuple(f"output '{name}', {what}, left off" for name, what in idle.items())


def check_outputs(graph: ir.Graph, where: str) -> None:
    """Refuses outputs that are not tensors of numbers.

    Raises:
        GraphError: an output holds words, or is a sequence, a map or an optional.
    """
    numbers = [name_of(value) for value in graph.outputs if not _why_not_numbers(value)]
    for value in graph.outputs:
        reason = _why_not_numbers(value)
        if reason:
            node, scores = value.producer(), _find_scores(value)
            before = () if node is None else node.inputs if scores is None else (scores,)
            read = [name_of(source) for source in before if source is not None and not _why_not_numbers(source)]
            ends = ", ".join(f"'{name}'" for name in (*numbers, *read)) or "the tensors of numbers before it"
            raise GraphError(
                f"{where}: output '{name_of(value)}' {reason}, and an answer must be a tensor of numbers. Save a copy "
                f"of the network that ends before it, at {ends}: "
                "onnx.utils.extract_model(file, copy, inputs, outputs)"
            )


def check_answers(led: Mapping[str, TensorSpec], answers: Sequence[str]) -> None:
    """Refuses answers that are as long as their row.

    Args:
        led: tensors by name, as ``probe_tensors`` found them.
        answers: the outputs that answer.

    Raises:
        GraphError: one of them is.
    """
    for name in answers:
        if led[name].length_axes:
            raise GraphError(
                f"--lengths: the output '{name}' of the network is as long as its row; answers must have one shape. "
                "Export the network with an output of one shape, or leave --lengths out"
            )


def _find_scores(value: ir.Value) -> ir.Value | None:
    """Returns the numbers of all classes that an output chooses the largest of; ``None`` where it is no such choice."""
    current: ir.Value | None = value
    while current is not None and (node := current.producer()) is not None:
        if node.op_type == "ArgMax" and not node.domain:
            return node.inputs[0]
        if node.op_type in _CLASSIFIERS and node.domain == ML:
            return node.outputs[1] if current is node.outputs[0] else None
        current = _step_back(node)
    return None


def _step_back(node: ir.Node) -> ir.Value | None:
    """Returns what a node only renames: the number of a class for a word, another type, another shape."""
    if node.op_type in _RENAMING:
        return node.inputs[0]
    if node.op_type in _LOOKING_UP and _read_table(node) is not None:
        return node.inputs[1]
    return None


def _read_classes(node: ir.Node) -> tuple[str, ...] | tuple[int, ...]:
    """Returns the classes that a node holds, in the order of their numbers."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    keys = attributes.get("keys_int64s", ())
    if node.op_type == "LabelEncoder" and list(keys) == list(range(len(keys))):
        return tuple(attributes.get("values_strings") or attributes.get("values_int64s") or ())
    if node.op_type in (*_CLASSIFIERS, "ZipMap"):
        numbers = attributes.get("classlabels_int64s") or attributes.get("classlabels_ints")
        return tuple(attributes.get("classlabels_strings") or numbers or ())
    table = _read_table(node) if node.op_type in _LOOKING_UP else None
    if table is None:
        return ()
    if table.dtype == ir.DataType.STRING:
        return tuple(word.decode() for word in table.numpy().ravel())
    return tuple(int(number) for number in table.numpy().ravel())


def _read_table(node: ir.Node) -> ir.TensorProtocol | None:
    """Returns the constant in which a node looks something up."""
    return None if node.inputs[0] is None else ir.convenience.get_const_tensor(node.inputs[0])


def _why_not_numbers(value: ir.Value) -> str:
    if value.dtype == ir.DataType.STRING:
        return "holds words"
    if value.dtype == ir.DataType.BFLOAT16:
        return "is bfloat16, which engines do not hand over"
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return "is a sequence, a map or an optional"
    node = value.producer()
    if node is not None and (node.domain, node.op_type) == (ML, "LabelEncoder"):
        written = [name for name in node.attributes if name.startswith("values_")]
        if "values_strings" in written:
            return "holds words"
    return ""
