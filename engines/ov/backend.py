"""The OpenVINO backends, one per arithmetic: their factories for the table of backends."""

from __future__ import annotations

from functools import partial
from typing import Any

from artifacts import Artifact, EngineKey, GraphSpec, UsageError
from engines.host.host_device import open_host_device
from engines.identity.description import EngineDescription
from engines.identity.keys import vet_key
from engines.options import BuildOptions
from engines.ov.session import OPENVINO, OPENVINO_BF16, identify_openvino
from engines.protocols import Backend, Device, Engine, EngineBuilder, ModelLoader


def _open(artifact: Artifact, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None) -> Engine:
    from engines.ov.run import open_ov_engine

    del device
    return open_ov_engine(artifact.folder, key, graph, threads=threads)


def _make_builder(backend: str, options: BuildOptions) -> EngineBuilder:
    from engines.ov.build import OvBuilder

    if options.profiles is not None:
        raise UsageError(f"--profiles {options.profiles}: {backend} has no shape profiles; omit it")
    return OvBuilder(backend, options)


def _take_any_batch_size(_: BuildOptions) -> tuple[int, ...]:
    return ()


def _vet(artifact: Artifact, key: EngineKey) -> None:
    vet_key(artifact.folder, key, identify_openvino())


def _describe(artifact: Artifact, key: EngineKey) -> EngineDescription:
    from engines.ov.run import open_compiled

    _vet(artifact, key)
    model = open_compiled(artifact.folder, key.backend, threads=1).model
    return EngineDescription(
        engine=artifact.folder.as_posix(),
        key=key,
        inputs=_show(model.inputs),
        outputs=_show(model.outputs),
        profiles=(f"any batch of 1 to {key.max_batch_size} rows",),
        unverified=None,
    )


def _show(values: Any) -> tuple[str, ...]:
    return tuple(f"{value.any_name}: {value.element_type} {value.partial_shape} with the batch" for value in values)


def _make_runner(backend: str, model: ModelLoader, label: str) -> Any:
    from engines.ov.tensors import make_ov_runner

    return make_ov_runner(backend, model, label)


def _backend(name: str) -> Backend:
    return Backend(
        name=name,
        packages=("openvino",),
        identify=identify_openvino,
        open=_open,
        builder=partial(_make_builder, name),
        fixed_batch_sizes=_take_any_batch_size,
        vet=_vet,
        describe=_describe,
        device=partial(open_host_device, name),
        tensors=partial(_make_runner, name),
    )


OPENVINO_BACKEND = _backend(OPENVINO)
OPENVINO_BF16_BACKEND = _backend(OPENVINO_BF16)
