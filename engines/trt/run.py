"""Opening and running TensorRT engines, of either flavour, over the buffers and on the stream of a ``CudaDevice``.

**Contexts.** There is one execution context per binding, that is per stage, number of rows and chain: its profile,
shapes and addresses are set once, so that a run changes nothing. Contexts own no activation memory (``USER_MANAGED``):
all of them work in one block of the device, sized for the largest engine that was opened. That is sound because runs
follow one another on one stream, and the block is in use only from the start of a run to its end on the GPU.

**CUDA graphs.** A binding is captured after its first run (``engines/gpu/graphs.py``), where the device's options say
so and the engine allows it: TensorRT-RTX is asked (``is_stream_capturable``), and specialises its kernels eagerly,
since a kernel that it replaced later would invalidate the graph. Other bindings are enqueued anew for each run.

*Not yet run on a GPU.* The calls were checked against the real bindings of TensorRT 10.16, 11.4 and TensorRT-RTX 1.7.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EngineError, EngineKey, GraphSpec
from engines.gpu.alignment import AlignedBuffers
from engines.gpu.buffer_checks import check_device_buffers
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.graphs import CapturedGraph, run_and_capture
from engines.host.buffer_checks import read_length, view_graph
from engines.identity.keys import rebuild_command
from engines.protocols import Buffer, Execution
from engines.trt.files import EngineFiles, Profile
from engines.trt.kernel_cache import kernel_cache
from engines.trt.library import PRODUCTS, deserialise_engine, error_text, load_tensorrt, trt_logger
from engines.trt.profiles import TENSORRT_RTX


def open_trt_engine(
    folder: Path, key: EngineKey, graph: GraphSpec, files: EngineFiles, *, device: CudaDevice
) -> TrtEngine:
    """Deserialises the engine in a verified and vetted folder.

    Args:
        folder: filled by ``TrtBuilder.build``.
        key: its key.
        graph: its interface.
        files: the content of the folder, from ``vet_trt_engine``.
        device: where its buffers live; its stream takes the work.

    Raises:
        EngineError: TensorRT refuses it, or its interface is not that of ``graph``.
    """
    device.cuda.enter()
    trt, (logger, _) = load_tensorrt(key.backend), trt_logger(key.backend)
    runtime = trt.Runtime(logger)
    engines = {}
    for file in files.files:
        engine = deserialise_engine(key.backend, runtime, folder / file)
        _check_names(trt, engine, graph, folder)
        device.reserve_scratch(int(engine.device_memory_size_v2))
        engines[file] = engine
    return TrtEngine(key=key, graph=graph, files=files, runtime=runtime, engines=engines, device=device)


def _check_names(trt: Any, engine: Any, graph: GraphSpec, folder: Path) -> None:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for kind, mode, specs in (
        ("inputs", trt.TensorIOMode.INPUT, graph.inputs),
        ("outputs", trt.TensorIOMode.OUTPUT, graph.outputs),
    ):
        found = {name for name in names if engine.get_tensor_mode(name) == mode}
        expected = {spec.name for spec in specs}
        if found != expected:
            raise EngineError(
                f"the engine at {folder} is not an engine of {graph.name}: its {kind} are {sorted(found)}, expected "
                f"{sorted(expected)}. Build it again with: {rebuild_command(folder)}"
            )


class TrtEngine:
    """An open engine; made by ``open_trt_engine``. Its runs follow one another on the device's stream."""

    def __init__(
        self, *, key: EngineKey, graph: GraphSpec, files: EngineFiles, runtime: Any, engines: Mapping[str, Any],
        device: CudaDevice,
    ) -> None:  # fmt: skip
        self._key = key
        self._graph = graph
        self._files = files
        self._runtime = runtime
        self._engines = dict(engines)
        self._device = device
        self._bound: weakref.WeakSet[_ContextRun] = weakref.WeakSet()

    @property
    def key(self) -> EngineKey:
        return self._key

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """As ``Engine.bind``; the returned call keeps the buffers alive and raises ``EngineError`` after ``close``.

        Slow: makes an execution context, runs it once over the present content of the buffers, and captures it.
        """
        if not self._engines:
            raise EngineError(f"{self._graph.name}: the engine is closed; open it again")
        graph = view_graph(self._graph, self._key, buffers)
        arrays, rows = check_device_buffers(graph, self._key, buffers, device=self._device.index)
        self._device.cuda.enter()
        profile = self._files.profile_of(rows, read_length(self._graph, arrays))
        aligned = AlignedBuffers(graph, arrays, self._device)
        what = f"{self._graph.name} with {rows} rows"
        context = self._make_context(self._engines[profile.file], profile, aligned, what=what)
        bound = _ContextRun(self._key.backend, context, aligned, self._device, what=what)
        self._bound.add(bound)
        return bound

    def close(self) -> None:
        """Waits for the device's work, then frees contexts, engines and runtime, in TensorRT's order."""
        if not self._engines:
            return
        self._device.synchronize()
        for bound in list(self._bound):
            bound.release()
        self._engines.clear()
        self._runtime = None

    def _make_context(self, engine: Any, profile: Profile, aligned: AlignedBuffers, *, what: str) -> Any:
        trt, (_, records) = load_tensorrt(self._key.backend), trt_logger(self._key.backend)
        device, stream = self._device, self._device.cuda.stream_handle
        with records.record() as logged:
            run_config = engine.create_runtime_config()
            run_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if self._key.backend == TENSORRT_RTX:
                run_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # PAME captures the runs itself
                eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
                run_config.dynamic_shapes_kernel_specialization_strategy = eager
                kernel_cache(device, self._key.backend_version).attach(run_config)
            context = engine.create_execution_context(run_config)
            done = context is not None and context.set_optimization_profile_async(profile.index, stream)
            for spec in self._graph.inputs:
                done = done and context.set_input_shape(spec.name, aligned.arrays[spec.name].shape)
            for name, array in aligned.arrays.items():
                done = done and context.set_tensor_address(name, array.pointer)
            missing = context.infer_shapes() if done else []
        if not done or missing:
            reason = f"the shapes of {missing} are unknown" if missing else error_text(logged)
            raise EngineError(f"{PRODUCTS[self._key.backend]} cannot bind {what}: {reason}")
        address, size = device.scratch(int(engine.device_memory_size_v2))
        context.set_device_memory(address, size)
        return context


class _ContextRun:
    """An execution context with its addresses, and its CUDA graph where it was captured; keeps the buffers alive.

    Attributes:
        captured: whether it runs as a CUDA graph.
        graph: its captured work; ``None`` where it runs without.
    """

    __slots__ = ("__weakref__", "_aligned", "_backend", "_context", "_device", "_what", "captured", "graph")

    def __init__(self, backend: str, context: Any, aligned: AlignedBuffers, device: CudaDevice, *, what: str) -> None:
        self._backend = backend
        self._context = context
        self._aligned: AlignedBuffers | None = aligned
        self._device = device
        self._what = what
        self.graph: CapturedGraph | None = None
        if device.options.cuda_graphs and self._can_capture():
            self.graph = run_and_capture(device.cuda, self._enqueue, what=what)
        self.captured = self.graph is not None

    def __call__(self) -> None:
        cuda = self._device.cuda
        cuda.enter()
        if self.graph is not None:
            self.graph.launch()
        else:
            self._enqueue(cuda.stream_handle)

    def release(self) -> None:
        """Frees everything; it must no longer run."""
        if self.graph is not None:
            self.graph.free()
        self.graph = None
        self._context = None
        self._aligned = None

    def _can_capture(self) -> bool:
        if self._backend != TENSORRT_RTX:
            return True
        context = self._context
        return bool(context.is_stream_capturable(int(self._device.cuda.capture_stream)))

    def _enqueue(self, stream: int) -> None:
        context, aligned, (_, records) = self._context, self._aligned, trt_logger(self._backend)
        if aligned is None:
            raise EngineError(f"{self._what}: the engine is closed; open it again")
        aligned.copy_in(stream)
        with records.record() as logged:
            done = context.execute_async_v3(stream)
        if not done:
            raise EngineError(f"{PRODUCTS[self._backend]} failed to run {self._what}: {error_text(logged)}")
        aligned.copy_out(stream)
