"""Polygraphy's runners for a graph with any of its tensors as outputs, and one for OpenVINO, which Polygraphy lacks."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import MissingExtraError, UsageError
from engines.ort.session import ort_errors, translate_error
from engines.ov.session import HINTS, compile_model, load_openvino

ORT = "onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that are compared.

    Attributes:
        label: for tables.
        backend: ``onnxruntime``, ``openvino`` or ``openvino-bf16``.
        onnx: the network's file.
    """

    label: str
    backend: str
    onnx: Path


def load_polygraphy(module: str) -> Any:
    """Imports a module of Polygraphy; ``MissingExtraError`` names the extra where it is missing."""
    try:
        return importlib.import_module(f"polygraphy.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("polygraphy", "compare") from error


def check_backend(backend: str) -> None:
    """Refuses a backend whose tensors cannot be looked at here.

    Raises:
        UsageError: it is none that runs on the processor.
    """
    if backend != ORT and backend not in HINTS:
        known = ", ".join((ORT, *HINTS))
        raise UsageError(f"--engine {backend}: engines are compared on the processor; take one of {known}")


def run_side(side: Side, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns tensors of a side's network for some rows, computed by Polygraphy's Comparator.

    Args:
        side: which.
        inputs: name -> (n, ...).
        outputs: names of tensors of the graph.

    Raises:
        EngineError: the backend refuses the graph with these outputs.
        MissingExtraError: Polygraphy or the backend is not installed.
    """
    comparator = load_polygraphy("comparator").Comparator
    logger = load_polygraphy("logger").G_LOGGER
    with logger.verbosity(logger.CRITICAL):
        try:
            results = comparator.run([_make_runner(side, outputs)], data_loader=[dict(inputs)], warm_up=0)
        except ort_errors() as error:
            raise translate_error(error, f"run {side.onnx} with {len(outputs)} outputs") from error
    (_, (found, *_)), *_ = results.items()
    return {name: np.asarray(found[name]) for name in outputs if name in found}


def _make_runner(side: Side, outputs: Sequence[str]) -> Any:
    onnx_loaders = load_polygraphy("backend.onnx")
    marked = onnx_loaders.BytesFromOnnx(
        onnx_loaders.ModifyOutputs(onnx_loaders.OnnxFromPath(str(side.onnx)), outputs=list(outputs))
    )
    if side.backend == ORT:
        runners = load_polygraphy("backend.onnxrt")
        return runners.OnnxrtRunner(runners.SessionFromOnnx(marked), name=side.label)
    return _openvino_runner(marked(), side)


def _openvino_runner(model: bytes, side: Side) -> Any:
    base = load_polygraphy("backend.base").BaseRunner
    metadata = load_polygraphy("common").TensorMetadata

    class OpenVinoRunner(base):  # type: ignore[misc,valid-type]  # the base is loaded when it is needed
        """A compiled model behind Polygraphy's seam for runners."""

        def activate_impl(self) -> None:
            core = load_openvino().Core()
            self._request = compile_model(
                core.read_model(model), side.backend, what=f"compile {side.onnx}"
            ).create_infer_request()

        def get_input_metadata_impl(self) -> Any:
            found = metadata()
            for value in self._request.get_compiled_model().inputs:
                shape = [size.get_length() if size.is_static else None for size in value.partial_shape]
                found.add(value.any_name, np.dtype(value.element_type.to_dtype()), shape)
            return found

        def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> Any:
            started = perf_counter()
            answered = self._request.infer(dict(feed_dict))
            self.inference_time = perf_counter() - started
            return OrderedDict(
                (name, np.array(array)) for output, array in answered.to_dict().items() for name in output.get_names()
            )

        def deactivate_impl(self) -> None:
            del self._request

    return OpenVinoRunner(name=side.label)
