"""Loading: an ``.onnx`` file becomes a graph that can be cut: current opset, named values, a symbolic batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from artifacts import (
    GraphError,
    Preprocessing,
    SequenceSpec,
    TensorSpec,
    UsageError,
    check_lengths,
    name_token_inputs,
    unknown_name,
)
from export.graphs.batch_axis import free_batch
from export.graphs.dataflow import batch_wide_branch, name_of
from export.graphs.files import symbolic_shape
from export.graphs.normalising import normalise_model
from export.graphs.number_formats import batch_wide_quantisation, precision_of, rounding_of
from export.graphs.outputs import check_outputs, find_classes, take_off_constants, take_off_labels, take_off_maps
from export.graphs.reading import read_model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedGraph:
    """A graph whose inputs all have the symbolic batch as leading axis.

    Attributes:
        model: the graph; its intermediate values carry no shapes, since those of the file may be stale.
        inputs: its inputs, in the graph's order.
        outputs: names of its outputs.
        fixed_batch: the batch size that the file insisted on, before it was rewritten; ``None``: it was open.
        notes: what was rewritten, for the report.
        precision: what the file computes in, or what an export pass made of it.
        rounding: the coarsest number format in it, a key of ``export.graphs.probing.TOLERANCES``.
        highest: the largest integer that is drawn for integer inputs where it is run on random rows.
        pixels: how its only input is made of images, where that is known: then random images are drawn.
        sequence: the lengths that its rows may have; ``None`` where all rows have one shape.
        classes: their names, where the file turns answers into words; those words are taken off.
    """

    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    rounding: str = "fp32"
    highest: int = 1
    pixels: Preprocessing | None = None
    sequence: SequenceSpec | None = None
    classes: tuple[str, ...] = ()


def load_graph(
    path: Path,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    lengths: tuple[int, ...] = (),
    length: int | None = None,
    batch: int | None = None,
) -> LoadedGraph:
    """Loads an ONNX file.

    A fixed batch size is rewritten into a symbolic one; whether that was right is for ``probe_tensors`` to prove.

    Args:
        path: the file.
        input_shapes: input name -> row shape, for inputs whose shape the file leaves open. The empty name stands for
            the only input.
        lengths: the lengths that rows may have, ascending: the size of every axis that the file leaves open and
            ``input_shapes`` does not name. None: all rows have one shape.
        length: of a row of tokens, where all inputs are such rows by their names and the file leaves that open.
        batch: the batch size that the file insists on, where it declares an open one.

    Raises:
        UsageError: no such file or input, a shape is missing or contradicts the file, or no axis is open for the
            lengths.
        InputError: the file is not ONNX.
        GraphError: the graph cannot be brought to the current opset, or an input has no batch axis.
    """
    model = read_model(path)
    classes = find_classes(model.graph)
    taken_off = (*take_off_maps(model.graph), *take_off_labels(model.graph))
    check_outputs(model.graph, str(path))
    loaded = prepare_graph(
        normalise_model(model), input_shapes=input_shapes or {}, where=str(path), lengths=lengths, length=length,
        batch=batch,
    )  # fmt: skip
    return replace(
        loaded, notes=(*taken_off, *loaded.notes), classes=tuple(name for name in classes if isinstance(name, str))
    )


def prepare_graph(
    model: ir.Model,
    *,
    input_shapes: Mapping[str, tuple[int, ...]],
    where: str,
    lengths: tuple[int, ...] = (),
    length: int | None = None,
    batch: int | None = None,
) -> LoadedGraph:
    """Gives every input a symbolic batch and a fixed row shape, and drops the shapes of everything else.

    Args:
        model: a normalised model; changed in place.
        input_shapes, lengths, length, batch: as in ``load_graph``.
        where: the file, for messages.
    """
    graph = model.graph
    if not graph.outputs:
        raise GraphError(f"{where} has no outputs")
    taken_off = take_off_constants(graph, where)
    mixing = batch_wide_quantisation(graph)
    if mixing is not None:
        raise GraphError(
            f"{where}: node '{mixing.name or name_of(mixing.outputs[0])}' quantises its input by the range of the "
            f"whole batch ({mixing.op_type}), so a row's answer depends on its neighbours. Quantise the network "
            "statically: from its form in float32 with --precision int8 --data DATA, or with "
            "onnxruntime.quantization.quantize_static"
        )
    if branch := batch_wide_branch(graph):
        raise GraphError(
            f"{where}: node '{branch}' decides by values of the whole batch what is computed, so a row's answer "
            "depends on its neighbours. Export the network without it, with torch.where for instance"
        )
    _open_axes(graph)
    shapes = {**_row_lengths(graph, length), **_name_shapes(graph, input_shapes)}
    if lengths:
        check_lengths(lengths)
    specs = tuple(_input_spec(value, shapes.get(value.name or ""), where, lengths) for value in graph.inputs)
    sequence = SequenceSpec(lengths=lengths, mask=_find_mask(specs, where)) if lengths else None
    if not specs:
        raise GraphError(f"{where} has no inputs, so there is nothing to batch")
    fixed = {int(value.shape[0]) for value in graph.inputs if value.shape and isinstance(value.shape[0], int)}
    if len(fixed) > 1:
        raise GraphError(
            f"{where}: its inputs insist on different leading sizes {sorted(fixed)}, so they have no batch in common. "
            "Export the network with a dynamic batch axis"
        )
    notes = taken_off
    if batch is not None:
        fixed = {batch}
    if fixed:
        notes += free_batch(graph, next(iter(fixed)))
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for value, spec in zip(graph.inputs, specs, strict=True):
        value.shape = symbolic_shape(spec)
    return LoadedGraph(
        model=model,
        inputs=specs,
        outputs=tuple(value.name or "" for value in graph.outputs),
        fixed_batch=next(iter(fixed), None),
        notes=notes,
        precision=precision_of(graph),
        rounding=rounding_of(graph),
        sequence=sequence,
    )


def _open_axes(graph: ir.Graph) -> None:
    """Opens the axes of inputs whose size is 0 or less: so older converters write an axis of any size."""
    for value in graph.inputs:
        if value.shape is not None and any(isinstance(dim, int) and dim < 1 for dim in value.shape):
            value.shape = ir.Shape([dim if not isinstance(dim, int) or dim > 0 else None for dim in value.shape])


def _name_shapes(graph: ir.Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    names = [value.name or "" for value in graph.inputs]
    found = dict(shapes)
    if "" in found:
        if len(names) != 1:
            raise UsageError(f"--input-shape needs a name: the graph has the inputs {', '.join(names)}; say NAME:...")
        found[names[0]] = found.pop("")
    for name in found:
        if name not in names:
            raise unknown_name("input", name, names)
    return found


def _row_lengths(graph: ir.Graph, length: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the shape of the rows of tokens that a graph leaves open, by input."""
    names = [value.name or "" for value in graph.inputs]
    if length is None or name_token_inputs(names) is None:
        return {}
    rows = [value for value in graph.inputs if value.shape is not None and len(value.shape) == 2]
    return {value.name or "": (length,) for value in rows if value.shape and not isinstance(value.shape[1], int)}


def _find_late_batch(dims: Sequence[object] | None) -> str:
    """Returns what to do about an input whose batch, by its name, is not the leading axis."""
    late = [str(dim) for dim in (dims or ())[1:] if not isinstance(dim, int) and "batch" in str(dim).lower()]
    if not late or "batch" in str((dims or ("",))[0]).lower():
        return ""
    return f". If '{late[0]}' is its batch: that must be the leading axis, so export the network with it first"


def _find_mask(specs: Sequence[TensorSpec], where: str) -> str:
    """Returns the input that says which positions of a row are padding: as long as the row, and called a mask."""
    long = [spec for spec in specs if spec.length_axes]
    if not long:
        raise UsageError(
            f"--lengths: {where} leaves no axis of a row open. Export the network with a dynamic sequence axis, or "
            "leave --lengths out"
        )
    masks = [spec.name for spec in long if "mask" in spec.name.lower() and len(spec.row_shape) == 1]
    if len(masks) != 1:
        found = ", ".join(f"'{spec.name}'" for spec in long)
        raise UsageError(
            f"--lengths: expected one input of {where} that masks padding, (batch, length) with 'mask' in its name; "
            f"inputs with a length are {found}. Export the network with an input attention_mask, or leave --lengths out"
        )
    return masks[0]


def _input_spec(
    value: ir.Value, wanted: tuple[int, ...] | None, where: str, lengths: tuple[int, ...] = ()
) -> TensorSpec:
    name = value.name or ""
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise GraphError(f"{where}: input '{name}' is not a tensor; sequences and optionals cannot be batched")
    if value.dtype == ir.DataType.STRING:
        raise GraphError(f"{where}: input '{name}' takes strings; only numbers can be batched")
    if value.dtype == ir.DataType.BFLOAT16:
        raise GraphError(
            f"{where}: input '{name}' is bfloat16, which callers cannot hand over. "
            "Export the network with float32 inputs"
        )
    dims = None if value.shape is None else list(value.shape)
    if dims is not None and not dims:
        raise GraphError(f"{where}: input '{name}' is a scalar without a batch axis; make it a constant first")
    stated = None if dims is None else tuple(dim if isinstance(dim, int) else None for dim in dims[1:])
    axes: tuple[int, ...] = ()
    if lengths and wanted is None and stated is not None:
        axes = tuple(axis for axis, dim in enumerate(stated) if dim is None)
        stated = tuple(lengths[-1] if dim is None else dim for dim in stated)
    if wanted is None:
        if stated is None or None in stated:
            shown = "all dimensions" if dims is None else ", ".join(str(d) for d in dims[1:] if not isinstance(d, int))
            example = ",".join(["224" if dim is None else str(dim) for dim in stated or ()])
            example = "3,224,224" if example in ("", "224,224,224") else example
            lengths_too = ", or --lengths 16,32,64 for rows of several lengths" if len(stated or ()) == 1 else ""
            raise UsageError(
                f"{where}: input '{name}' leaves open {shown}; say --input-shape {name}:{example}{lengths_too}"
                f"{_find_late_batch(dims)}"
            )
        row: tuple[int, ...] = tuple(dim for dim in stated if dim is not None)
    else:
        if stated is not None and (
            len(stated) != len(wanted) or any(s is not None and s != w for s, w in zip(stated, wanted, strict=True))
        ):
            shown = ",".join("?" if dim is None else str(dim) for dim in stated)
            raise UsageError(
                f"--input-shape {name}:{','.join(map(str, wanted))} contradicts {where}, "
                f"where a row of '{name}' is ({shown})"
            )
        row = wanted
    if any(dim < 1 for dim in row):
        raise UsageError(f"{where}: input '{name}' has rows of shape {row}; every dimension must be at least 1")
    return TensorSpec(name=name, dtype=str(value.dtype.numpy()), row_shape=row, length_axes=axes)
