"""Opening and running ONNX Runtime engines: buffers are bound once by address, a run copies nothing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EngineError, EngineKey, GraphSpec, TensorSpec
from engines.host.buffer_checks import check_host_buffers, view_graph
from engines.host.forks import check_process
from engines.identity.keys import rebuild_command
from engines.ort.files import graph_file
from engines.ort.session import DTYPES, bind_addresses, open_unchanged, ort_errors, translate_error
from engines.protocols import Buffer, Execution


def open_ort_engine(folder: Path, key: EngineKey, graph: GraphSpec, *, threads: int) -> OrtEngine:
    """Opens the engine in a verified and vetted folder.

    Args:
        folder: filled by ``OrtBuilder.build``.
        key: its key.
        graph: its interface.
        threads: threads of a run, the caller's included.

    Raises:
        EngineError: onnxruntime refuses it, or its interface is not that of ``graph``.
    """
    sessions = {}
    for size in key.batch_sizes or (None,):
        file = folder / graph_file(size)
        sessions[size] = open_unchanged(file, threads=threads, what=f"open {graph.name} at {folder}")
        check_session_interface(sessions[size], graph, folder)
    return OrtEngine(key=key, graph=graph, sessions=sessions)


def check_session_interface(session: Any, graph: GraphSpec, folder: Path) -> None:
    """Raises ``EngineError`` when a session's inputs or outputs are not those of ``graph``."""
    for kind, values, specs in (
        ("inputs", session.get_inputs(), graph.inputs),
        ("outputs", session.get_outputs(), graph.outputs),
    ):
        found = {value.name: value for value in values}
        if set(found) == {spec.name for spec in specs} and all(_fits(found[spec.name], spec) for spec in specs):
            continue
        got = ", ".join(f"{value.name} {value.type} {value.shape}" for value in values)
        wanted = ", ".join(f"{spec.name} {spec.dtype} {list(spec.row_shape)} a row" for spec in specs)
        raise EngineError(
            f"the engine at {folder} is not an engine of {graph.name}: its {kind} are {got}, expected {wanted}. "
            f"Build it again with: {rebuild_command(folder)}"
        )


def _fits(value: Any, spec: TensorSpec) -> bool:
    """Compares type and rank, and every axis of a row whose size the graph fixes."""
    row = value.shape[1:]
    return (
        DTYPES.get(value.type) == spec.dtype
        and len(value.shape) == len(spec.row_shape) + 1
        and all(not isinstance(axis, int) or axis == size for axis, size in zip(row, spec.row_shape, strict=True))
    )


class OrtEngine:
    """An open engine; made by ``open_ort_engine``. Different bindings may run in different threads at once."""

    def __init__(self, *, key: EngineKey, graph: GraphSpec, sessions: Mapping[int | None, Any]) -> None:
        self._key = key
        self._graph = graph
        self._sessions = dict(sessions)
        self._process = os.getpid()
        self._bound: weakref.WeakSet[_HostRun] = weakref.WeakSet()

    @property
    def key(self) -> EngineKey:
        return self._key

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """As ``Engine.bind``; the returned call keeps the buffers alive and raises ``EngineError`` after ``close``."""
        if not self._sessions:
            raise EngineError(f"{self._graph.name}: the engine is closed; open it again")
        check_process(self._process, self._graph.name)
        graph = view_graph(self._graph, self._key, buffers)
        arrays, rows = check_host_buffers(graph, self._key, buffers)
        session = self._sessions[rows if self._key.batch_sizes else None]
        bound = _HostRun(session, graph, arrays)
        self._bound.add(bound)
        return bound

    def close(self) -> None:
        for bound in list(self._bound):
            bound.release()
        self._sessions.clear()


class _HostRun:
    """A session with its inputs and outputs bound to the addresses of arrays, which it keeps alive."""

    __slots__ = ("__weakref__", "_arrays", "_binding", "_name", "_process", "_session")

    def __init__(self, session: Any, graph: GraphSpec, arrays: dict[str, np.ndarray]) -> None:
        self._name = graph.name
        self._process = os.getpid()
        self._arrays = arrays
        self._session = session
        self._binding = bind_addresses(session, graph, arrays, device="cpu", index=0)

    def __call__(self) -> None:
        session = self._session
        if session is None:
            raise EngineError(f"{self._name}: the engine is closed; open it again")
        check_process(self._process, self._name)
        try:
            session.run_with_iobinding(self._binding)
        except ort_errors() as error:
            raise translate_error(error, f"run {self._name}") from error

    def release(self) -> None:
        self._binding = None
        self._session = None
        self._arrays = {}
