"""Inputs of a call: one array per input of the network, checked before anything is copied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from artifacts import InputError, TensorSpec, unknown_name
from engines import Buffer, Device, DeviceArray, is_device_array


class DLPackArray(Protocol):
    """An array of another library, on a GPU, that can be exchanged by DLPack: torch's, CuPy's ..."""

    def __dlpack__(self, *arguments: Any, **options: Any) -> Any: ...


class CudaArray(Protocol):
    """An array of another library that says where on a GPU it lies: PyCUDA's, Numba's ..."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


Array = np.ndarray | DLPackArray | CudaArray
Batch = Array | Mapping[str, Array] | Sequence[Array]
"""One array, a mapping of arrays by input name, or a sequence of them in the order of the inputs."""

_SHOWN_ROWS = 5
_FEW_NUMBERS = 8192  # of more, BLAS would sum the squares with threads of its own
_HALF = 2  # bytes of a float16, whose squares are soon infinite


def read_batch(
    batch: Batch, inputs: Sequence[TensorSpec], device: Device, *, check_finite: bool = True, stream: Any = None
) -> tuple[np.ndarray | Buffer, ...]:
    """Returns the arrays of a batch in the order of ``inputs``, as they are: nothing is copied.

    Args:
        batch: one array (B, ...) for a network with one input; otherwise a mapping by input name or a sequence in
            the order of ``inputs``. Any memory layout; B >= 1; any length, the same for all inputs that have one.
        inputs: those of the network.
        device: where it will run; adopts arrays that lie on a GPU (``__dlpack__``, ``__cuda_array_interface__``).
        check_finite: refuse rows with NaN or infinity; for an array on the GPU that waits for a kernel.
        stream: the caller's, on which an array on the GPU was made; by default the one that the array names itself.

    Returns:
        numpy arrays, and views of arrays on the device.

    Raises:
        InputError: not arrays, another number of them, a wrong dtype or shape, no rows, unequal numbers of rows, a row
            that is not finite, or an array on another device.
        UsageError: a mapping names an input that the network does not have.
    """
    arrays = _in_order(batch, inputs)
    for array in arrays:
        if not isinstance(array, np.ndarray):
            arrays = tuple(_view_array(array, device, stream) for array in arrays)
            break
    for array, spec in zip(arrays, inputs, strict=True):
        _check_array(array, spec)
    _check_lengths(arrays, inputs)
    if len(arrays) > 1 and len({len(array) for array in arrays}) > 1:
        counts = ", ".join(f"{len(array)} of '{spec.name}'" for array, spec in zip(arrays, inputs, strict=True))
        raise InputError(f"the inputs have different numbers of rows: {counts}. Pass one row of each per query")
    if len(arrays[0]) == 0:
        raise InputError("the batch is empty; pass at least one row")
    if check_finite:
        for array, spec in zip(arrays, inputs, strict=True):
            _check_finite(array, spec, device)
    return arrays


def _view_array(array: Any, device: Device, stream: Any) -> Any:
    """Returns a view of an array on the device; everything else, numpy's arrays included, as it is."""
    if isinstance(array, np.ndarray) or not is_device_array(array):
        return array
    return device.adopt(array, stream=stream)


def _in_order(batch: Batch, inputs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    single = isinstance(batch, np.ndarray) or (not isinstance(batch, (tuple, list, Mapping)) and is_device_array(batch))
    if single and len(inputs) == 1:
        return (batch,)
    names = [spec.name for spec in inputs]
    if isinstance(batch, dict) and len(batch) == len(names) and all(name in batch for name in names):
        return tuple([batch[name] for name in names])
    listed = ", ".join(f"'{name}'" for name in names)
    if single:
        raise InputError(
            f"this network takes {len(inputs)} inputs ({listed}), got one array. "
            "Pass a mapping from their names to arrays, or a tuple in this order"
        )
    if isinstance(batch, Mapping):
        for name in batch:
            if name not in names:
                raise unknown_name("input", str(name), names)
        missing = [name for name in names if name not in batch]
        if missing:
            raise InputError(f"the batch lacks the inputs {missing}; this network takes {listed}")
        return tuple(batch[name] for name in names)
    if not isinstance(batch, (list, tuple)):
        raise InputError(f"a batch is a numpy array, got {type(batch).__name__}. Convert it with np.asarray(...)")
    if len(batch) != len(inputs):
        raise InputError(
            f"this network takes {len(inputs)} input(s) ({listed}), got a {type(batch).__name__} of {len(batch)}. "
            "One batch of rows is one array: stack them with np.stack(rows)"
        )
    return tuple(batch)


def _is_surely_finite(array: np.ndarray) -> bool:
    """Tells whether a small array holds finite numbers only, as far as that is quickly told: the sum of their squares
    is finite, which takes one array call and not two; that of huge numbers is not either."""
    return array.size <= _FEW_NUMBERS and array.itemsize > _HALF and math.isfinite(np.vdot(array, array))


def _check_array(array: Any, spec: TensorSpec) -> None:
    is_array = isinstance(array, np.ndarray) or isinstance(array, DeviceArray)  # noqa: SIM101 - twice as fast this way
    if spec.length_axes and is_array and array.ndim == len(spec.row_shape) + 1:
        spec = spec.at_length(array.shape[1 + spec.length_axes[0]])
    if is_array and array.ndim and array.shape[1:] == spec.row_shape and array.dtype == spec.dtype:
        return
    row = ["L" if axis in spec.length_axes else str(size) for axis, size in enumerate(spec.row_shape)]
    wanted = ", ".join(["B", *row]) + ("" if row else ",")
    if not is_array:
        raise InputError(
            f"input '{spec.name}': expected a numpy array ({wanted}), got {type(array).__name__}. "
            "Convert it with np.asarray(...)"
        )
    if array.ndim == 0 or array.shape[1:] != spec.row_shape:
        hint = " For a single query add the batch axis: row[None]." if array.shape == spec.row_shape else ""
        raise InputError(f"input '{spec.name}': expected shape ({wanted}), got {array.shape}.{hint}")
    raise InputError(
        f"input '{spec.name}': expected {spec.dtype}, got {array.dtype}. Convert it with .astype(np.{spec.dtype})"
    )


def _check_lengths(arrays: Sequence[Any], inputs: Sequence[TensorSpec]) -> None:
    """Refuses inputs whose rows have different lengths, or none."""
    if not any(spec.length_axes for spec in inputs):
        return
    lengths = {
        spec.name: array.shape[1 + spec.length_axes[0]]
        for array, spec in zip(arrays, inputs, strict=True)
        if spec.length_axes
    }
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        found = ", ".join(f"{length} of '{name}'" for name, length in lengths.items())
        raise InputError(f"the inputs have rows of the lengths {found}. Pad all of them to one length, at least 1")


def _check_finite(array: np.ndarray | Buffer, spec: TensorSpec, device: Device) -> None:
    if array.dtype.kind != "f" or (isinstance(array, np.ndarray) and _is_surely_finite(array)):
        return
    bad = device.find_nonfinite(array)
    if not bad:
        return
    shown = ", ".join(map(str, bad[:_SHOWN_ROWS])) + (", ..." if len(bad) > _SHOWN_ROWS else "")
    raise InputError(
        f"input '{spec.name}': {len(bad)} of {len(array)} rows hold NaN or infinity (rows {shown}). "
        "Leave them out, or load the runtime with check_finite=False"
    )
