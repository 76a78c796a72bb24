"""Opening and running ONNX Runtime engines on a GPU, over the buffers and on the stream of a ``CudaDevice``.

Inputs and outputs are bound by their addresses on the GPU once; a run enqueues its work on the device's stream and
returns without waiting. ONNX Runtime stores intermediate tensors in an arena of its own, which stops growing after the
first runs. *Not yet run on a GPU.*
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EngineError, EngineKey, GraphSpec
from engines.gpu.alignment import AlignedBuffers
from engines.gpu.arrays import DeviceArray
from engines.gpu.buffer_checks import check_device_buffers
from engines.gpu.cuda_device import CudaDevice
from engines.ort.cuda_session import GRAPH_FILE, open_cuda_session
from engines.ort.run import check_session_interface
from engines.ort.session import bind_addresses, load_onnxruntime, ort_errors, translate_error
from engines.protocols import Buffer, Execution


def open_ort_cuda_engine(folder: Path, key: EngineKey, graph: GraphSpec, *, device: CudaDevice) -> OrtCudaEngine:
    """Opens the engine in a verified and vetted folder.

    Args:
        folder: filled by ``OrtCudaBuilder.build``.
        key: its key.
        graph: its interface.
        device: where its buffers live; its stream takes the work.

    Raises:
        EngineError: onnxruntime refuses it or would not run it on the GPU, or its interface is not that of ``graph``.
    """
    cuda = device.cuda
    cuda.enter()
    what = f"open {graph.name} at {folder}"
    session = open_cuda_session(str(folder / GRAPH_FILE), index=cuda.index, stream=cuda.stream_handle, what=what)
    check_session_interface(session, graph, folder)
    return OrtCudaEngine(key=key, graph=graph, session=session, device=device)


class OrtCudaEngine:
    """An open engine; made by ``open_ort_cuda_engine``. Its runs follow one another on the device's stream."""

    def __init__(self, *, key: EngineKey, graph: GraphSpec, session: Any, device: CudaDevice) -> None:
        self._key = key
        self._graph = graph
        self._session = session
        self._device = device
        self._bound: weakref.WeakSet[_CudaRun] = weakref.WeakSet()

    @property
    def key(self) -> EngineKey:
        return self._key

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """As ``Engine.bind``; the returned call keeps the buffers alive and raises ``EngineError`` after ``close``."""
        if self._session is None:
            raise EngineError(f"{self._graph.name}: the engine is closed; open it again")
        arrays, _ = check_device_buffers(self._graph, self._key, buffers, device=self._device.index)
        bound = _CudaRun(self._session, self._graph, arrays, self._device)
        self._bound.add(bound)
        return bound

    def close(self) -> None:
        """Waits for the device's work, then frees bindings and session."""
        if self._session is not None:
            self._device.synchronize()
        for bound in list(self._bound):
            bound.release()
        self._session = None


class _CudaRun:
    """A session with its inputs and outputs bound to addresses on the GPU, which it keeps alive."""

    __slots__ = ("__weakref__", "_aligned", "_binding", "_device", "_name", "_options", "_session")

    def __init__(self, session: Any, graph: GraphSpec, buffers: Mapping[str, DeviceArray], device: CudaDevice) -> None:
        self._name = graph.name
        self._aligned: AlignedBuffers | None = AlignedBuffers(graph, buffers, device)
        self._session = session
        self._device = device
        self._options = load_onnxruntime().RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = bind_addresses(session, graph, self._aligned.arrays, device="cuda", index=device.index)

    def __call__(self) -> None:
        session, aligned, cuda = self._session, self._aligned, self._device.cuda
        if session is None or aligned is None:
            raise EngineError(f"{self._name}: the engine is closed; open it again")
        cuda.enter()
        aligned.copy_in(cuda.stream_handle)
        try:
            session.run_with_iobinding(self._binding, self._options)
        except ort_errors() as error:
            raise translate_error(error, f"run {self._name}") from error
        aligned.copy_out(cuda.stream_handle)

    def release(self) -> None:
        self._binding = None
        self._session = None
        self._aligned = None
