"""Quantising: the ranges of a network's tensors, and Q/DQ nodes by them; the work is ``onnxruntime.quantization``'s.

The network lies in a folder of its own, once, with the ranges that each method found; any number of quantised
variants are made of it without running it again.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from artifacts import GraphError
from export.graphs.files import PROTO_LIMIT, weight_bytes

_KINDS = {"min-max": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
METHODS = tuple(_KINDS)
"""The ways to find the range of a tensor: all values; 99.99 % of them; where the least information is lost."""
_PERCENTILE = 99.99
_CHUNK_BYTES = 64 << 20  # of one run's intermediate tensors, all of which a calibrator keeps until it has counted them
_MOST_ROWS = 32
_OWN_RANGE = ("MatMul", "Gemm")  # whose results stay in float32: sums of rows that a normalisation reads next
_PREPARED = (
    "onnx.quant.pre_process",
    "onnxruntime.quant",
)  # says that shapes are inferred and nothing is to be warned of


def fold_normalisations(model: ir.Model) -> ir.Model:
    """Returns a copy of a network in which batch normalisations are folded into the convolutions before them.

    Between a convolution in int8 and its result in int8 there is no place for one. ONNX Runtime folds them, in its
    basic optimisation; a network without any stays as it is.
    """
    copy = model.clone()
    if not any(node.op_type == "BatchNormalization" for node in copy.graph):
        return copy
    from onnxruntime.quantization import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="pame-int8-") as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        large = weight_bytes(copy) >= PROTO_LIMIT
        ir.save(copy, before, external_data="before.onnx.data" if large else None)
        quant_pre_process(
            before, after, skip_onnx_shape=True, skip_symbolic_shape=True, save_as_external_data=large
        )  # fmt: skip
        folded = ir.load(after)
        ir.external_data.load_to_model(folded)
    return folded


class Quantiser:
    """A network in float32, its ranges, and its quantised variants.

    Weights are int8 with a scale per channel, activations uint8 with a scale and a zero point per tensor; or int8 with
    a zero point of 0, and biases in float32, as TensorRT wants them.

    Args:
        model: the network, every node with a name; it is copied.
        folder: empty; the files lie there.
        symmetric: the second form.
    """

    def __init__(self, model: ir.Model, folder: Path, *, symmetric: bool = False) -> None:
        self._symmetric = symmetric
        copy = model.clone()
        ir.external_data.load_to_model(copy)
        passes.ShapeInferencePass()(copy)
        copy.metadata_props[_PREPARED[0]] = _PREPARED[1]
        self._large = weight_bytes(copy) >= PROTO_LIMIT
        self._folder = folder
        self._network = folder / "float.onnx"
        ir.save(copy, self._network, external_data="float.onnx.data" if self._large else None)

    def find_ranges(self, method: str, rows: Mapping[str, np.ndarray], operators: Collection[str]) -> None:
        """Runs the network and keeps the range of every tensor that one of some operators reads or makes.

        Args:
            method: one of ``METHODS``.
            rows: input name -> (n, ...).
            operators: e.g. ``Conv``.
        """
        from onnxruntime.quantization import create_calibrator, save_tensors_data

        calibrator = create_calibrator(
            self._network, list(operators), augmented_model_path=str(self._folder / f"{method}.onnx"),
            calibrate_method=_find_kind(method), use_external_data_format=self._large,
            extra_options={"symmetric": self._symmetric, "percentile": _PERCENTILE},
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # where the library prints how far it is
            for chunk in _in_chunks(rows, _rows_at_once(rows)):
                calibrator.collect_data(_reader(chunk))
            save_tensors_data(calibrator.compute_data(), self._ranges(method))

    def quantise(self, method: str, nodes: Collection[str]) -> ir.Model:
        """Returns the network with Q/DQ nodes around some of its nodes, by the ranges of a method.

        Raises:
            GraphError: ``onnxruntime.quantization`` refuses the network.
        """
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        target = self._folder / "quantised.onnx"
        options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": list(_OWN_RANGE)}
        if self._symmetric:
            options |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        try:
            quantize_static(
                self._network, target, None, quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8 if self._symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8, nodes_to_quantize=sorted(nodes), use_external_data_format=self._large,
                calibrate_method=_find_kind(method), calibration_cache_path=self._ranges(method), extra_options=options,
            )  # fmt: skip
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise GraphError(
                f"the network cannot be had in int8: onnxruntime.quantization refuses it ({error}). Export it in fp32"
            ) from error
        found = ir.load(target)
        ir.external_data.load_to_model(found)
        return found

    def _ranges(self, method: str) -> Path:
        return self._folder / f"{method}.json"


def _find_kind(method: str) -> Any:
    """Returns a method as the library names it."""
    from onnxruntime.quantization import CalibrationMethod

    return getattr(CalibrationMethod, _KINDS[method])


def _reader(rows: Mapping[str, np.ndarray]) -> Any:
    """Returns some rows as the library reads them: one dictionary, then nothing."""
    from onnxruntime.quantization import CalibrationDataReader

    class OneChunk(CalibrationDataReader):  # type: ignore[misc]  # its base has no types
        def __init__(self) -> None:
            self._left = [dict(rows)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    return OneChunk()


def _rows_at_once(rows: Mapping[str, np.ndarray]) -> int:
    row = sum(array[:1].nbytes for array in rows.values())
    return int(max(1, min(_MOST_ROWS, _CHUNK_BYTES // max(1, 64 * row))))


def _in_chunks(rows: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in rows.items()}
