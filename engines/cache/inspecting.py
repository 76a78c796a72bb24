"""What is known of one engine: interface, profiles, memory, layers; for ``python -m engines inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import EngineKey, TensorSpec, UsageError, unknown_name
from engines.backends.opening import identify_backend
from engines.gpu.detection import find_gpu
from engines.identity.keys import BACKENDS, ONNXRUNTIME, TENSORRT_FLAVOURS, open_key, vet_key


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What is known of one engine.

    Attributes:
        engine, key: which one: its folder, and what it was built for.
        inputs, outputs: name, dtype and row shape of each tensor; the batch comes on top.
        profiles: the batch sizes that it was compiled for, in words, in the order of the backend's own numbering.
        activation_bytes: scratch memory of a run, per profile or per file; empty where nobody says.
        layers: in the order of execution; empty where the backend does not tell, or not here.
        untold: what could not be found out on this machine; ``None`` where everything was.
    """

    engine: str
    key: EngineKey
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profiles: tuple[str, ...]
    activation_bytes: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    untold: str | None = None


def find_engine(cache: Path, name: str) -> Path:
    """Returns the folder of a cached engine by its name, or the first characters of it.

    Raises:
        UsageError: none, or several of them, begin like that.
    """
    folders = sorted(path for path in cache.glob("*") if path.is_dir() and not path.name.startswith("."))
    found = [path for path in folders if path.name.startswith(name)]
    if len(found) > 1:
        raise UsageError(f"'{name}' begins the names of {len(found)} engines: {', '.join(path.name for path in found)}")
    if not found:
        raise unknown_name("engine", name, [path.name for path in folders])
    return found[0]


def describe_engine(folder: Path) -> EngineDescription:
    """Verifies an engine and describes it.

    Raises:
        ArtifactError: it is missing, damaged, or was built for something else than this machine.
        EngineError: the backend refuses it.
        UsageError, MissingExtraError: its backend is unknown here or not installed.
    """
    artifact, key = open_key(folder)
    if key.backend == ONNXRUNTIME:
        vet_key(folder, key, identify_backend(key.backend))
        return _describe_ort(folder, key)
    if key.backend not in TENSORRT_FLAVOURS:
        raise unknown_name("engine backend", key.backend, BACKENDS)
    from engines.trt.layers import inspect_trt
    from engines.trt.vetting import untold, vet_trt_engine

    files = vet_trt_engine(artifact, key, None)
    missing = untold(key)
    memory, layers = files.activation_bytes, tuple[str, ...]()
    if find_gpu() is not None:
        vet_key(folder, key, identify_backend(key.backend))
        insights = inspect_trt(folder, key.backend, files)
        memory = tuple(size for insight in insights for size in insight.activation_bytes)
        layers = tuple(layer for insight in insights for layer in insight.layers)
    return EngineDescription(
        engine=folder.as_posix(), key=key, inputs=_show(files.inputs), outputs=_show(files.outputs),
        profiles=tuple(
            f"{one.file} profile {one.index}: {one.least} to {one.most} rows, tuned for {one.best}"
            for one in files.profiles
        ),
        activation_bytes=memory, layers=layers, untold=missing and f"{missing}; nor can its layers",
    )  # fmt: skip


def _show(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    return tuple(f"{spec.name}: {spec.dtype} {list(spec.row_shape)} a row" for spec in specs)


def _describe_ort(folder: Path, key: EngineKey) -> EngineDescription:
    from engines.ort.files import graph_file
    from engines.ort.session import load_onnxruntime, open_session, session_options

    sizes: tuple[int | None, ...] = key.batch_sizes or (None,)
    options = session_options(1)
    options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(str(folder / graph_file(sizes[0])), options, what=f"open {folder}")

    def show(values: Any) -> tuple[str, ...]:
        return tuple(f"{value.name}: {value.type} {value.shape[1:]} a row" for value in values)

    profiles = [f"any batch of 1 to {key.max_batch_size} rows" if size is None else f"{size} rows" for size in sizes]
    return EngineDescription(
        engine=folder.as_posix(), key=key, inputs=show(session.get_inputs()), outputs=show(session.get_outputs()),
        profiles=tuple(profiles),
    )  # fmt: skip
