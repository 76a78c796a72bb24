"""Opening and running OpenVINO engines: tensors of requests lie over the buffers, a run copies nothing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EngineError, EngineKey, GraphSpec, TensorSpec
from engines.host.buffer_checks import check_host_buffers, view_graph
from engines.host.forks import check_process, outlive_forks
from engines.identity.keys import rebuild_command
from engines.ov.build import BLOB_FILE
from engines.ov.session import import_model, load_openvino, translate_error
from engines.protocols import Buffer, Execution


def open_ov_engine(folder: Path, key: EngineKey, graph: GraphSpec, *, threads: int) -> OvEngine:
    """Opens the engine in a verified and vetted folder.

    Args:
        folder: filled by ``OvBuilder.build``.
        key: its key.
        graph: its interface.
        threads: threads of a run, while which the caller waits.

    Raises:
        EngineError: OpenVINO refuses it, or its interface is not that of ``graph``.
    """
    opened = open_compiled(folder, key.backend, threads=threads)
    _check_interface(opened.model, graph, folder)
    return OvEngine(key=key, graph=graph, opened=opened)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A compiled model, and its file, mapped into memory: it reads its weights there and does not keep them itself."""

    model: Any
    blob: np.ndarray


def open_compiled(folder: Path, backend: str, *, threads: int) -> Opened:
    """Opens the compiled model of an engine; processes share the pages of its file.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    blob = np.memmap(folder / BLOB_FILE, np.uint8, mode="c")  # OpenVINO takes only what it could write to
    model = import_model(blob, backend, threads=threads, what=f"open {folder}")
    return Opened(model=model, blob=blob)


def _check_interface(model: Any, graph: GraphSpec, folder: Path) -> None:
    """Raises ``EngineError`` when a model's inputs or outputs are not those of ``graph``."""
    for kind, values, specs in (("inputs", model.inputs, graph.inputs), ("outputs", model.outputs, graph.outputs)):
        found = {name: value for value in values for name in value.names}
        if len(values) == len(specs) and all(spec.name in found and _fits(found[spec.name], spec) for spec in specs):
            continue
        got = ", ".join(f"{value.any_name} {value.element_type} {value.partial_shape}" for value in values)
        wanted = ", ".join(f"{spec.name} {spec.dtype} {list(spec.row_shape)} a row" for spec in specs)
        raise EngineError(
            f"the engine at {folder} is not an engine of {graph.name}: its {kind} are {got}, expected {wanted}. "
            f"Build it again with: {rebuild_command(folder)}"
        )


def _fits(value: Any, spec: TensorSpec) -> bool:
    """Compares type and rank, and every axis of a row whose size the graph fixes."""
    shape = value.partial_shape
    if value.element_type.to_dtype() != np.dtype(spec.dtype) or shape.rank.is_dynamic:
        return False
    row = list(shape)[1:]
    return len(row) == len(spec.row_shape) and all(
        axis.is_dynamic or axis.get_length() == size for axis, size in zip(row, spec.row_shape, strict=True)
    )


class OvEngine:
    """An open engine; made by ``open_ov_engine``. Different bindings may run in different threads at once."""

    def __init__(self, *, key: EngineKey, graph: GraphSpec, opened: Opened) -> None:
        self._key = key
        self._graph = graph
        self._opened: Opened | None = opened
        self._process = os.getpid()
        self._bound: weakref.WeakSet[_OvRun] = weakref.WeakSet()

    @property
    def key(self) -> EngineKey:
        return self._key

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """As ``Engine.bind``; the returned call keeps the buffers alive and raises ``EngineError`` after ``close``."""
        if self._opened is None:
            raise EngineError(f"{self._graph.name}: the engine is closed; open it again")
        check_process(self._process, self._graph.name)
        graph = view_graph(self._graph, self._key, buffers)
        arrays, _ = check_host_buffers(graph, self._key, buffers)
        bound = _OvRun(self._opened, graph, arrays)
        self._bound.add(bound)
        return bound

    def close(self) -> None:
        for bound in list(self._bound):
            bound.release()
        self._opened = None


class _OvRun:
    """A request whose tensors lie over arrays, which it keeps alive."""

    __slots__ = ("__weakref__", "_arrays", "_name", "_opened", "_process", "_request")

    def __init__(self, opened: Opened, graph: GraphSpec, arrays: dict[str, np.ndarray]) -> None:
        self._name = graph.name
        self._process = os.getpid()
        self._arrays = arrays
        self._opened: Opened | None = opened
        openvino = load_openvino()
        try:
            self._request: Any = outlive_forks(opened.model.create_infer_request())
            for spec in (*graph.inputs, *graph.outputs):
                self._request.set_tensor(spec.name, openvino.Tensor(arrays[spec.name], shared_memory=True))
        except (RuntimeError, ValueError, TypeError) as error:
            raise translate_error(error, f"bind {graph.name}") from error

    def __call__(self) -> None:
        request, opened = self._request, self._opened  # both held here: the weights outlast a run that ``close`` meets
        if request is None or opened is None:
            raise EngineError(f"{self._name}: the engine is closed; open it again")
        check_process(self._process, self._name)
        try:
            request.start_async()
            request.wait()
        except (RuntimeError, ValueError) as error:
            raise translate_error(error, f"run {self._name}") from error

    def release(self) -> None:
        self._request = None
        self._opened = None
        self._arrays = {}
