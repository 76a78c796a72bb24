"""Vetting of TensorRT engines, before a byte of them reaches TensorRT.

The folder was already checked against its manifest, and the key against version, GPU, driver and graph
(``keys.vet_key``). This module checks the build options by name, the profiles, the interface, and, where there is a
GPU, lets TensorRT-RTX check the engine's header.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artifacts import Artifact, EngineKey, GraphSpec, StaleArtifactError, read_json
from engines.gpu.detection import find_gpu
from engines.identity.keys import rebuild_command, refuse_differences
from engines.trt.files import PROFILES_JSON, EngineFiles, file_differences
from engines.trt.library import PRODUCTS, load_tensorrt, trt_logger
from engines.trt.profiles import TENSORRT_RTX, option_differences


def vet_trt_engine(artifact: Artifact, key: EngineKey, graph: GraphSpec | None) -> EngineFiles:
    """Refuses an engine with other options, other profiles or another interface than expected.

    Args:
        artifact: its folder, verified.
        key: its key, vetted.
        graph: the interface that it must have; ``None`` skips that check.

    Returns:
        The content of its folder.

    Raises:
        StaleArtifactError: something differs, or TensorRT-RTX refuses it on this GPU; with the command that builds it
            again.
        CorruptArtifactError, SchemaError: ``profiles.json`` is missing, or not what it should be.
    """
    refuse_differences(artifact.folder, option_differences(key.backend, key.options))
    files = read_json(artifact.path(PROFILES_JSON), EngineFiles)
    refuse_differences(artifact.folder, file_differences(files, key, graph))
    paths = [artifact.path(name) for name in files.files]
    if key.backend == TENSORRT_RTX and find_gpu() is not None:
        for path in paths:
            check_validity(path)
    return files


def describe_unverified(key: EngineKey) -> str | None:
    """Returns the check that vetting cannot make on this machine; ``None`` where it makes all."""
    if find_gpu() is not None:
        return None
    return f"whether {PRODUCTS[key.backend]} runs it here cannot be verified without a GPU"


def check_validity(path: Path) -> None:
    """Asks TensorRT-RTX whether an engine runs on this GPU; it reads only the header.

    Raises:
        StaleArtifactError: the answer is no; with TensorRT-RTX's diagnostics.
    """
    trt, (logger, _) = load_tensorrt(TENSORRT_RTX), trt_logger(TENSORRT_RTX)
    runtime = trt.Runtime(logger)
    with path.open("rb") as stream:
        header = stream.read(runtime.engine_header_size)
    validity, diagnostics = runtime.get_engine_validity(header)
    if validity == trt.EngineValidity.INVALID and diagnostics:
        raise StaleArtifactError(
            f"TensorRT-RTX {trt.__version__} reports that {path} does not run on {_here()}: "
            f"{', '.join(name_diagnostics(trt, diagnostics))}. Build it again with: {rebuild_command(path.parent)}"
        )


def name_diagnostics(trt: Any, diagnostics: int) -> tuple[str, ...]:
    """Returns the names of the bits that TensorRT-RTX set; their numbers may change with its version."""
    members = trt.EngineInvalidityDiagnostics.__members__
    return tuple(name for name, member in members.items() if int(member) & diagnostics)


def _here() -> str:
    gpu = find_gpu()
    return "this machine" if gpu is None else gpu.description
