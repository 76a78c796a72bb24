"""Running a side of a comparison: Polygraphy's Comparator over a graph with some of its tensors as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import UsageError
from engines.backends.table import TABLE, find_backend
from engines.host.debugging import load_polygraphy
from engines.ort.session import ort_errors, translate_error
from engines.protocols import MakeRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that are compared.

    Attributes:
        label: for tables.
        backend: one whose tensors can be looked at.
        onnx: the network's file.
    """

    label: str
    backend: str
    onnx: Path


def find_maker(backend: str) -> MakeRunner:
    """Returns what makes runners of a backend.

    Raises:
        UsageError: there is no such backend, or its tensors cannot be looked at.
    """
    maker = find_backend(backend).tensors
    if maker is None:
        known = ", ".join(each.name for each in TABLE if each.tensors is not None)
        raise UsageError(f"--engine {backend}: engines are compared on the processor; take one of {known}")
    return maker


def run_side(side: Side, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns tensors of a side's network for some rows.

    Args:
        side: which.
        inputs: name -> (n, ...).
        outputs: names of tensors of the graph.

    Raises:
        EngineError: the backend refuses the graph with these outputs.
        MissingExtraError: Polygraphy or the backend is not installed.
    """
    loaders = load_polygraphy("backend.onnx")
    marked = loaders.ModifyOutputs(loaders.OnnxFromPath(str(side.onnx)), outputs=list(outputs))
    runner = find_maker(side.backend)(loaders.BytesFromOnnx(marked), side.label)
    comparator, logger = load_polygraphy("comparator").Comparator, load_polygraphy("logger").G_LOGGER
    with logger.verbosity(logger.CRITICAL):
        try:
            results = comparator.run([runner], data_loader=[dict(inputs)], warm_up=0)
        except ort_errors() as error:
            raise translate_error(error, f"run {side.onnx} with {len(outputs)} outputs") from error
    (_, (found, *_)), *_ = results.items()
    return {name: np.asarray(found[name]) for name in outputs if name in found}
