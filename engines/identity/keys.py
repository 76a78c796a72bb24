"""Engine keys on disk, and the checks of a key before its engine is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from artifacts import (
    BUNDLE_JSON,
    Artifact,
    EngineError,
    EngineKey,
    StaleArtifactError,
    digest_of,
    open_artifact,
    read_json,
)
from engines.identity.onnx_facts import OnnxFacts

ENGINE_JSON = "engine.json"
KIND = "engine"
BUILD_SECONDS = "build_seconds"  # in the manifest's environment, which is not part of the engine's digest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackendIdentity:
    """A backend's version and device on this machine; an engine runs only where it was built for the same.

    Attributes:
        version: the exact version.
        device: the processor and its instruction sets, or the GPU and its driver.
        obstacle: why none of its engines runs on this machine, and what to do; empty where they may.
    """

    version: str
    device: str
    obstacle: str = ""


def key_digest(key: EngineKey) -> str:
    """Returns the name of an engine's folder in a cache: 16 hex digits of the digest of its key."""
    return digest_of(key)[:16]


def open_key(folder: Path) -> tuple[Artifact, EngineKey]:
    """Verifies an engine's folder byte by byte and reads its key; errors as ``open_artifact`` and ``read_json``."""
    artifact = open_artifact(folder, kind=KIND, remedy=rebuild_command(folder))
    return artifact, read_json(artifact.path(ENGINE_JSON), EngineKey)


def rebuild_command(folder: Path) -> str:
    """Returns the command that builds the engine in ``folder`` again, from the place of that folder."""
    command = "python -m engines build"
    for parent in folder.parents:
        if (parent / BUNDLE_JSON).is_file():
            return f"{command} --bundle {parent}"
    if folder.parent.name == "engines" and (folder.parent.parent / "model").is_dir():
        return f"{command} --run {folder.parent.parent}"
    return command


def describe_differences(found: EngineKey, expected: EngineKey) -> tuple[str, ...]:
    """Names every field in which two keys differ, with both values; empty for equal keys."""
    pairs = [
        (field.name, getattr(found, field.name), getattr(expected, field.name)) for field in dataclasses.fields(found)
    ]
    return tuple(f"{name} is {was!r}, here {now!r}" for name, was, now in pairs if was != now)


def vet_key(folder: Path, key: EngineKey, identity: BackendIdentity, *, onnx: OnnxFacts | None = None) -> None:
    """Refuses an engine that was not built for this backend, this machine and this graph.

    Args:
        folder: of the engine, for the message.
        key: what it was built for.
        identity: of its backend on this machine.
        onnx: the graph that it should have been built from; ``None`` skips that check.

    Raises:
        EngineError: no engine of this backend runs here.
        StaleArtifactError: something differs; the message names it, both values, and the command that rebuilds.
    """
    if identity.obstacle:
        raise EngineError(identity.obstacle)
    expected = dataclasses.replace(key, backend_version=identity.version, device=identity.device)
    if onnx is not None:
        expected = dataclasses.replace(expected, onnx_digest=onnx.digest, precision=onnx.precision)
    refuse_differences(folder, describe_differences(key, expected))


def refuse_differences(folder: Path, differences: Sequence[str]) -> None:
    """Raises ``StaleArtifactError`` with the command that rebuilds the engine, if anything differs."""
    if differences:
        raise StaleArtifactError(
            f"the engine at {folder} was built for something else: {'; '.join(differences)}. "
            f"Build it again with: {rebuild_command(folder)}"
        )
