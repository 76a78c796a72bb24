"""The config.pbtxt of a bundle: its inputs and outputs as Triton declares them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from artifacts import BundleSpec, TensorSpec, UsageError
from runtime.oip.datatypes import datatype_of

EXIT_INDEX, CONFIDENCE = "exit_index", "confidence"
_ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def write_config(spec: BundleSpec, *, name: str, threads: int | None, instances: int) -> str:
    """Returns the text of config.pbtxt.

    Args:
        spec: the bundle.
        name: of the model in Triton.
        threads: of each engine; ``None``: the plan's own.
        instances: how many processes run it.

    Raises:
        UsageError: an output of the network is called as one that is added.
        InputError: Triton has no type for a tensor.
    """
    added = (
        TensorSpec(name=EXIT_INDEX, dtype="int64", row_shape=()),
        TensorSpec(name=CONFIDENCE, dtype="float32", row_shape=()),
    )
    if taken := {tensor.name for tensor in spec.outputs} & {EXIT_INDEX, CONFIDENCE}:
        raise UsageError(f"bundle '{spec.name}' has outputs {sorted(taken)}, names that Triton's model needs itself")
    kind = "KIND_GPU" if spec.backend in _ON_GPU else "KIND_CPU"
    parts = [
        f"name: {json.dumps(name)}",
        'backend: "python"',
        f"max_batch_size: {spec.max_batch_size}",
        _write_tensors("input", spec.inputs),
        _write_tensors("output", (*spec.outputs, *added)),
        f"instance_group [{{ count: {instances}, kind: {kind} }}]",
        "dynamic_batching {}",
    ]
    if threads is not None:
        parts.append(f'parameters {{ key: "threads", value: {{ string_value: "{threads}" }} }}')
    return "\n".join(parts) + "\n"


def _write_tensors(field: str, tensors: Sequence[TensorSpec]) -> str:
    return f"{field} [\n  " + ",\n  ".join(_write_tensor(tensor) for tensor in tensors) + "\n]"


def _write_tensor(tensor: TensorSpec) -> str:
    """Returns one tensor; a row of a single number has one axis in Triton, which is taken away before the model."""
    row = ["-1" if axis in tensor.length_axes else str(size) for axis, size in enumerate(tensor.row_shape)]
    dims = ", ".join(row) or "1"
    reshape = "" if tensor.row_shape else ", reshape: { shape: [] }"
    return (
        f"{{ name: {json.dumps(tensor.name)}, data_type: TYPE_{datatype_of(tensor.dtype)}, dims: [{dims}]{reshape} }}"
    )
