"""The TensorRT backends, classic and RTX: their factories for the table of backends."""

from __future__ import annotations

import dataclasses
from functools import partial

from artifacts import Artifact, EngineKey, GraphSpec, TensorSpec
from engines.gpu.cuda_device import CudaDevice, require_cuda_device
from engines.gpu.detection import find_gpu
from engines.identity.description import EngineDescription
from engines.identity.keys import vet_key
from engines.options import BuildOptions
from engines.protocols import Backend, Device, Engine, EngineBuilder
from engines.trt.library import NO_GPU, identify_tensorrt
from engines.trt.profiles import RANGE, TENSORRT, TENSORRT_RTX, choose_profiles
from engines.trt.vetting import describe_unverified, vet_trt_engine


def _open(artifact: Artifact, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None) -> Engine:
    from engines.trt.run import open_trt_engine

    del threads
    files = vet_trt_engine(artifact, key, graph)
    return open_trt_engine(artifact.folder, key, graph, files, device=require_cuda_device(key.backend, device))


def _make_builder(flavour: str, options: BuildOptions) -> EngineBuilder:
    from engines.trt.build import TrtBuilder

    return TrtBuilder(flavour, options)


def _fixed_batch_sizes(flavour: str, options: BuildOptions) -> tuple[int, ...]:
    return () if choose_profiles(flavour, options.profiles) == RANGE else tuple(options.batch_sizes)


def _vet(artifact: Artifact, key: EngineKey) -> str | None:
    identity = identify_tensorrt(key.backend)
    if identity.device == NO_GPU:
        identity = dataclasses.replace(identity, device=key.device)
    vet_key(artifact.folder, key, identity)
    vet_trt_engine(artifact, key, None)
    return describe_unverified(key)


def _describe(artifact: Artifact, key: EngineKey) -> EngineDescription:
    from engines.trt.layers import inspect_trt

    files = vet_trt_engine(artifact, key, None)
    unverified = describe_unverified(key)
    memory, layers = files.activation_bytes, tuple[str, ...]()
    if find_gpu() is not None:
        vet_key(artifact.folder, key, identify_tensorrt(key.backend))
        insights = inspect_trt(artifact.folder, key.backend, files)
        memory = tuple(size for insight in insights for size in insight.activation_bytes)
        layers = tuple(layer for insight in insights for layer in insight.layers)
    return EngineDescription(
        engine=artifact.folder.as_posix(),
        key=key,
        inputs=_show(files.inputs),
        outputs=_show(files.outputs),
        profiles=tuple(
            f"{profile.file} profile {profile.index}: {profile.least} to {profile.most} rows, tuned for {profile.best}"
            for profile in files.profiles
        ),
        activation_bytes=memory,
        layers=layers,
        unverified=unverified and f"{unverified}, nor can its layers be listed",
    )


def _show(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    return tuple(f"{spec.name}: {spec.dtype} {list(spec.row_shape)} a row" for spec in specs)


def _make_backend(flavour: str, package: str) -> Backend:
    return Backend(
        name=flavour,
        packages=(package,),
        identify=partial(identify_tensorrt, flavour),
        open=_open,
        builder=partial(_make_builder, flavour),
        fixed_batch_sizes=partial(_fixed_batch_sizes, flavour),
        vet=_vet,
        describe=_describe,
        device=CudaDevice,
    )


TENSORRT_BACKEND = _make_backend(TENSORRT, "tensorrt")
TENSORRT_RTX_BACKEND = _make_backend(TENSORRT_RTX, "tensorrt-rtx")
