"""Opening and running ONNX Runtime engines on a GPU, over the buffers and on the stream of a ``CudaDevice``.

Inputs and outputs are bound by their addresses on the GPU once; a run enqueues its work on the device's stream and
returns without waiting. ONNX Runtime stores intermediate tensors in an arena of its own, which stops growing after the
first runs.

**CUDA graphs.** cuDNN plans a convolution anew whenever the shape of its input differs from that of the run before:
about 2 ms each, for ResNet-50 a tenth of a second, and in a chain every batch has other numbers of survivors. So a
binding is captured once, after a run of its own, where the device's options say so, and replayed from then on. A
session works on one stream for its life: the one for captures, so that capturing leaves the device's stream alone. What
cannot be captured runs there behind, and before, the work of the device's stream.

All bindings of a session share its arena. That is sound because replays follow one another on the device's stream, and
a capture, with the runs around it, excludes them (``capture_lock``).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EngineError, EngineKey, GraphSpec
from engines.gpu.alignment import AlignedBuffers
from engines.gpu.arrays import DeviceArray
from engines.gpu.buffer_checks import check_device_buffers
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call
from engines.gpu.graphs import CapturedGraph, capture_or_warn, log
from engines.host.buffer_checks import view_graph
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
    stream = int(cuda.capture_stream) if device.options.cuda_graphs else cuda.stream_handle
    session = open_cuda_session(str(folder / GRAPH_FILE), index=cuda.index, stream=stream, what=what)
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
        graph = view_graph(self._graph, self._key, buffers)
        arrays, _ = check_device_buffers(graph, self._key, buffers, device=self._device.index)
        bound = _CudaRun(self._session, graph, arrays, self._device)
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
    """A session with its inputs and outputs bound to addresses on the GPU, which it keeps alive.

    Attributes:
        graph: its captured work; ``None`` where it runs without.
    """

    __slots__ = ("__weakref__", "_aligned", "_binding", "_device", "_name", "_options", "_outputs", "_session", "graph")

    def __init__(self, session: Any, graph: GraphSpec, buffers: Mapping[str, DeviceArray], device: CudaDevice) -> None:
        rows = len(buffers[graph.outputs[0].name])
        self._name = f"{graph.name} with {rows} rows"
        self._aligned: AlignedBuffers | None = AlignedBuffers(graph, buffers, device)
        self._outputs = [buffers[spec.name] for spec in graph.outputs]
        self._session = session
        self._device = device
        self._options = load_onnxruntime().RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = bind_addresses(session, graph, self._aligned.arrays, device="cuda", index=device.index)
        self.graph: CapturedGraph | None = None
        if device.options.cuda_graphs:
            self._capture()

    def __call__(self) -> None:
        cuda = self._device.cuda
        cuda.enter()
        if self._session is None:
            raise EngineError(f"{self._name}: the engine is closed; open it again")
        if not self._device.options.cuda_graphs:
            self._enqueue(cuda.stream_handle)
            return
        with cuda.capture_lock:
            if self.graph is not None:
                self.graph.launch()
            else:
                self._run_beside()

    def release(self) -> None:
        """Frees everything; it must no longer run."""
        if self.graph is not None:
            self.graph.free()
        self.graph = None
        self._binding = None
        self._session = None
        self._aligned = None

    def _enqueue(self, stream: int) -> None:
        """Puts a run on the session's stream, which is ``stream``."""
        aligned = self._aligned
        if aligned is None:
            raise EngineError(f"{self._name}: the engine is closed; open it again")
        aligned.copy_in(stream)
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except ort_errors() as error:
            raise translate_error(error, f"run {self._name}") from error
        aligned.copy_out(stream)

    def _run_beside(self) -> None:
        """Runs on the stream for captures, behind the work that the device's stream has now, and before any later."""
        device, handle = self._device, int(self._device.cuda.capture_stream)
        device.order_streams(device.cuda.stream_handle, handle)
        self._enqueue(handle)
        device.order_streams(handle, device.cuda.stream_handle)

    def _capture(self) -> None:
        """Runs once over whatever stands in the buffers, captures, and replays: the outputs must be the same.

        A run that does some of its work on the processor would be captured without it. Where a capture is refused, or
        not whole, the reason is logged and the binding runs without.
        """
        device, cuda = self._device, self._device.cuda
        with cuda.capture_lock:
            device.synchronize()
            self._run_beside()
            wanted = [device.download(output, range(len(output))) for output in self._outputs]
            self.graph = capture_or_warn(cuda, self._enqueue, what=self._name)
            if self.graph is None:
                return
            for output in self._outputs:
                call("cuMemsetD8Async", output.pointer, 0xFF, output.nbytes, cuda.stream)
            self.graph.launch()
            found = [device.download(output, range(len(output))) for output in self._outputs]
            if not all(map(_alike, found, wanted)):
                log.warning("%s runs without a CUDA graph: replayed, it answers otherwise than it did", self._name)
                self.graph.free()
                self.graph = None


def _alike(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    largest = float(np.abs(wanted, dtype=np.float64).max(initial=0.0, where=np.isfinite(wanted)))
    return bool(np.allclose(found, wanted, rtol=1e-2, atol=1e-3 * largest, equal_nan=True))
