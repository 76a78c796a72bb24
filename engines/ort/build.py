"""Building ONNX Runtime engines: the graph is optimised once, for this processor, and stored.

An engine is the graph after all optimisations, the blocked NCHWc layout of convolutions included, with its weights
(those of MatMul also packed for the kernels) in one file beside it, which sessions map into memory: engines of one
process and of several share the pages. docs/adr/0003-onnxruntime-engines.md explains why.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import EngineError, EngineKey
from engines.options import BuildOptions, make_graph_key
from engines.ort.blocked_layout import find_entries, insert_entries, used_entries
from engines.ort.files import graph_file, weights_file
from engines.ort.session import (
    ONNXRUNTIME,
    identify_onnxruntime,
    load_onnxruntime,
    open_session,
    open_unchanged,
    session_options,
)

BUILD_OPTIONS = {"blocked_entries": "AveragePool", "graph_optimization": "all", "initializers": "external, prepacked"}
_EXTERNAL_BYTES = 1024
_SPARE_BYTES = 1 << 16  # what an optimised graph takes besides the weights of the graph it was made from


class OrtBuilder:
    """Compiles graphs for ONNX Runtime on the processor."""

    def __init__(self, options: BuildOptions) -> None:
        self._options = options

    @property
    def backend(self) -> str:
        return ONNXRUNTIME

    def key(self, onnx: Path) -> EngineKey:
        """Returns the key of the engine that ``build`` would make; errors as ``make_graph_key``."""
        return make_graph_key(
            onnx, self._options, backend=ONNXRUNTIME, identify=identify_onnxruntime, recorded=BUILD_OPTIONS
        )

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Writes the optimised graph, or one per batch size, into ``folder``.

        Raises:
            EngineError: onnxruntime refuses the graph, or its batch axis does not fit the batch sizes of ``key``.
        """
        source = open_unchanged(onnx, threads=1, what=f"load {onnx}")
        for size in key.batch_sizes or (None,):
            axis = _batch_axis(source, onnx, size)
            entries = find_entries(onnx)
            _optimise(onnx, folder, size, axis, entries)
            if (used := used_entries(folder / graph_file(size), entries)) != entries:
                _optimise(onnx, folder, size, axis, used)
            built = open_unchanged(folder / graph_file(size), threads=1, what=f"load {folder / graph_file(size)}")
            _check_interface(source, built, onnx)


def _batch_axis(session: Any, onnx: Path, size: int | None) -> str | None:
    """Returns the name of the batch axis, or ``None`` where the graph has exactly the requested size."""
    axes = {value.shape[0] if value.shape else None for value in session.get_inputs()}
    if axes == {size}:
        return None
    names = [axis for axis in axes if isinstance(axis, str)]
    if len(axes) != 1 or not names:
        wanted = "any batch size" if size is None else f"batch size {size}"
        raise EngineError(
            f"{onnx} cannot be built for {wanted}: the leading axes of its inputs are {sorted(map(str, axes))}, "
            "expected one name. Export it with a dynamic batch axis of one name"
        )
    return names[0]


def _optimise(onnx: Path, folder: Path, size: int | None, axis: str | None, entries: Sequence[str]) -> None:
    options = session_options(1)
    options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / graph_file(size))
    for name, value in {
        "session.optimized_model_external_initializers_file_name": weights_file(size),
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_EXTERNAL_BYTES),
        "session.save_external_prepacked_constant_initializers": "1",
        "session.model_external_initializers_file_folder_path": str(onnx.parent),
    }.items():
        options.add_session_config_entry(name, value)
    if size is not None and axis is not None:
        options.add_free_dimension_override_by_name(axis, size)
    try:
        open_session(insert_entries(onnx, entries), options, what=f"optimise {onnx}")
    except EngineError as error:
        reason = _why_not_written(folder, onnx.stat().st_size + _SPARE_BYTES)
        if reason:
            raise OSError(reason, os.strerror(reason), str(folder)) from error
        raise


def _why_not_written(folder: Path, size: int) -> int:
    """Returns the error number of a file of some bytes that cannot be in a folder, which ONNX Runtime does not name."""
    if shutil.disk_usage(folder).free < size:
        return errno.ENOSPC
    try:
        import resource
    except ImportError:  # Windows, which limits no file's size
        return 0
    allowed, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return errno.EFBIG if 0 <= allowed < size else 0


def _check_interface(source: Any, built: Any, onnx: Path) -> None:
    before, after = (
        [sorted((value.name, value.type) for value in values) for values in (s.get_inputs(), s.get_outputs())]
        for s in (source, built)
    )
    if before != after:
        raise EngineError(f"onnxruntime changed the interface of {onnx} from {before} to {after}; please report it")
