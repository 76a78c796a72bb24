"""Engines: compiled graphs, the devices they run on, and the sets that cover any number of rows.

This is the only room that depends on backends. Importing it loads none: a backend is loaded by the call that needs it.
"""

from engines.backends.building import build_engine, builder, fixed_batch_sizes
from engines.backends.devices import open_device
from engines.backends.opening import open_engine
from engines.backends.table import BACKENDS, DEFAULT_BACKEND, arithmetic_of, choose_backend, in_float32
from engines.build_progress import BuildWatch
from engines.cache.cache import CachedEngine, ensure_engine, list_engines
from engines.gpu.arrays import DeviceArray
from engines.gpu.foreign_arrays import is_device_array
from engines.gpu.pycuda_bridge import as_gpuarray, wrap_allocation
from engines.host.fake_engine import FakeEngine
from engines.host.fitting import find_length, fit_length, resize_rows, row_lengths
from engines.host.host_device import HostDevice
from engines.identity.keys import open_key
from engines.identity.onnx_facts import read_onnx_facts
from engines.options import BuildOptions, DeviceOptions
from engines.ort.graph_runner import GraphRunner, run_graph
from engines.ort.scratch import share_scratch
from engines.protocols import (
    Branch,
    Buffer,
    CapturedChain,
    Departure,
    Device,
    Engine,
    EngineBuilder,
    Execution,
    StageWork,
)
from engines.sets.covers import Covers, Run, choose_branches, plan_covers
from engines.sets.engine_set import EngineSet
from engines.trt.profiles import PROFILE_WAYS

__all__ = [
    # seams
    "Branch", "Buffer", "CapturedChain", "Departure", "Device", "Engine", "EngineBuilder", "Execution", "StageWork",
    # backends
    "BACKENDS", "DEFAULT_BACKEND", "PROFILE_WAYS", "BuildOptions", "BuildWatch", "DeviceOptions", "build_engine",
    "arithmetic_of", "builder", "choose_backend", "fixed_batch_sizes", "in_float32", "open_device", "open_engine",
    # cache
    "CachedEngine", "ensure_engine", "list_engines", "open_key",
    # covers
    "Covers", "EngineSet", "Run", "choose_branches", "plan_covers",
    # arrays on a GPU, and those of PyCUDA
    "DeviceArray", "as_gpuarray", "is_device_array", "wrap_allocation",
    # rows of several lengths
    "find_length", "fit_length", "resize_rows", "row_lengths",
    # host and fake
    "FakeEngine", "HostDevice",
    # any ONNX graph
    "GraphRunner", "read_onnx_facts", "run_graph", "share_scratch",
]  # fmt: skip
