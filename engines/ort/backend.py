"""The ONNX Runtime backends, on the processor and on CUDA: their factories for the table of backends."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from artifacts import Artifact, EngineKey, GraphSpec, UsageError
from engines.gpu.cuda_device import CudaDevice, require_cuda_device
from engines.gpu.detection import find_gpu
from engines.host.host_device import open_host_device
from engines.identity.description import EngineDescription
from engines.identity.keys import BackendIdentity, vet_key
from engines.options import BuildOptions
from engines.ort.cuda_session import GRAPH_FILE, ONNXRUNTIME_CUDA, identify_onnxruntime_cuda
from engines.ort.files import graph_file
from engines.ort.session import ONNXRUNTIME, identify_onnxruntime, open_unchanged
from engines.protocols import Backend, Device, Engine, EngineBuilder, ModelLoader


def _identify(_: int) -> BackendIdentity:
    return identify_onnxruntime()


def _open(artifact: Artifact, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None) -> Engine:
    from engines.ort.run import open_ort_engine

    del device
    return open_ort_engine(artifact.folder, key, graph, threads=threads)


def _open_cuda(artifact: Artifact, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None) -> Engine:
    from engines.ort.cuda_run import open_ort_cuda_engine

    del threads
    return open_ort_cuda_engine(artifact.folder, key, graph, device=require_cuda_device(key.backend, device))


def _make_builder(options: BuildOptions) -> EngineBuilder:
    from engines.ort.build import OrtBuilder

    _refuse_profiles(ONNXRUNTIME, options)
    return OrtBuilder(options)


def _make_cuda_builder(options: BuildOptions) -> EngineBuilder:
    from engines.ort.cuda_build import OrtCudaBuilder

    _refuse_profiles(ONNXRUNTIME_CUDA, options)
    return OrtCudaBuilder(options)


def _refuse_profiles(backend: str, options: BuildOptions) -> None:
    if options.profiles is not None:
        raise UsageError(f"--profiles {options.profiles}: {backend} has no shape profiles; omit it")


def _take_any_batch_size(_: BuildOptions) -> tuple[int, ...]:
    return ()


def _take_given_batch_sizes(options: BuildOptions) -> tuple[int, ...]:
    """Returns them all: cuDNN plans anew for each batch size, so those that occur must be few."""
    return options.batch_sizes


def _vet(artifact: Artifact, key: EngineKey) -> None:
    vet_key(artifact.folder, key, identify_onnxruntime())


def _vet_cuda(artifact: Artifact, key: EngineKey) -> None:
    vet_key(artifact.folder, key, identify_onnxruntime_cuda())


def _describe(artifact: Artifact, key: EngineKey) -> EngineDescription:
    _vet(artifact, key)
    sizes: tuple[int | None, ...] = key.batch_sizes or (None,)
    return _describe_graph(artifact.path(graph_file(sizes[0])), artifact.folder, key)


def _describe_cuda(artifact: Artifact, key: EngineKey) -> EngineDescription:
    """Describes an engine of the CUDA provider; its graph can be read without a GPU."""
    unverified = None
    if find_gpu() is None:
        unverified = f"whether {key.backend} runs it here cannot be verified without a GPU"
    else:
        _vet_cuda(artifact, key)
    return _describe_graph(artifact.path(GRAPH_FILE), artifact.folder, key, unverified=unverified)


def _describe_graph(onnx: Path, folder: Path, key: EngineKey, *, unverified: str | None = None) -> EngineDescription:
    session = open_unchanged(onnx, threads=1, what=f"open {folder}")
    profiles = [f"{size} rows" for size in key.batch_sizes] or [f"any batch of 1 to {key.max_batch_size} rows"]
    return EngineDescription(
        engine=folder.as_posix(),
        key=key,
        inputs=_show(session.get_inputs()),
        outputs=_show(session.get_outputs()),
        profiles=tuple(profiles),
        unverified=unverified,
    )


def _show(values: Any) -> tuple[str, ...]:
    return tuple(f"{value.name}: {value.type} {value.shape[1:]} a row" for value in values)


def _make_runner(model: ModelLoader, label: str) -> Any:
    from engines.ort.tensors import make_ort_runner

    return make_ort_runner(model, label)


ONNXRUNTIME_BACKEND = Backend(
    name=ONNXRUNTIME,
    packages=("onnxruntime",),
    identify=_identify,
    open=_open,
    builder=_make_builder,
    fixed_batch_sizes=_take_any_batch_size,
    vet=_vet,
    describe=_describe,
    device=partial(open_host_device, ONNXRUNTIME),
    tensors=_make_runner,
)
ONNXRUNTIME_CUDA_BACKEND = Backend(
    name=ONNXRUNTIME_CUDA,
    packages=("onnxruntime-gpu",),
    identify=identify_onnxruntime_cuda,
    open=_open_cuda,
    builder=_make_cuda_builder,
    fixed_batch_sizes=_take_given_batch_sizes,
    vet=_vet_cuda,
    describe=_describe_cuda,
    device=CudaDevice,
)
