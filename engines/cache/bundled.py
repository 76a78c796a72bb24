"""The engines of a bundle: found, and built again for the machine that the bundle was copied to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from artifacts import Artifact, EngineError, EngineKey, new_artifact, open_artifact, read_json
from engines.backends.building import build_engine, builder
from engines.identity.keys import ENGINE_JSON
from engines.identity.onnx_facts import read_onnx_facts
from engines.options import BuildOptions

_KIND = "bundle"
_REMEDY = "python -m planner"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledEngine:
    """An engine of a bundle and the graph in the same bundle that it is built from."""

    folder: Path
    onnx: Path


def find_bundle_engines(bundle: Path) -> tuple[Path, ...]:
    """Returns the folders of all engines in a bundle, sorted."""
    return tuple(sorted(path.parent for path in bundle.rglob(ENGINE_JSON)))


def rebuild_bundle(bundle: Path) -> tuple[BundledEngine, ...]:
    """Builds every engine of a bundle for this machine and publishes the bundle again, whole or not at all.

    Graphs, plan and thresholds stay as they are; an engine keeps its backend and batch sizes. The graph of an engine
    is the file in the bundle that has the digest of its key, whichever part of the bundle refers to it.

    Raises:
        ArtifactError: the bundle is absent, damaged, or cannot be written.
        EngineError: it holds no engine, or lacks an engine's graph, or the backend refuses one.
        UsageError, MissingExtraError: a backend is unknown here or not installed.
    """
    artifact = open_artifact(bundle, kind=_KIND, remedy=_REMEDY)
    plans = _match_engines(artifact)
    manifest = artifact.manifest
    with new_artifact(bundle, kind=_KIND, inputs=manifest.inputs, parameters=manifest.parameters) as staging:
        for entry in manifest.files:
            if not any((bundle / entry.path).is_relative_to(engine.folder) for engine, _ in plans):
                target = staging / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / entry.path, target)
        for engine, key in plans:
            fresh = builder(key.backend, BuildOptions.of(key)).key(engine.onnx)
            build_engine(engine.onnx, staging / engine.folder.relative_to(bundle), fresh)
    return tuple(engine for engine, _ in plans)


def _match_engines(artifact: Artifact) -> list[tuple[BundledEngine, EngineKey]]:
    listed = [artifact.folder / entry.path for entry in artifact.manifest.files]
    folders = sorted(path.parent for path in listed if path.name == ENGINE_JSON)
    if not folders:
        raise EngineError(f"{artifact.folder} holds no engine. Make the bundle again with: {_REMEDY}")
    graphs = [
        path for path in listed if path.suffix == ".onnx" and not any(path.is_relative_to(folder) for folder in folders)
    ]
    by_digest = {read_onnx_facts(path).digest: path for path in graphs}
    found = []
    for folder in folders:
        key = read_json(folder / ENGINE_JSON, EngineKey)
        if key.onnx_digest not in by_digest:
            raise EngineError(
                f"{artifact.folder} lacks the graph of its engine {folder.name} (digest {key.onnx_digest[:16]}). "
                f"Make the bundle again with: {_REMEDY}"
            )
        found.append((BundledEngine(folder=folder, onnx=by_digest[key.onnx_digest]), key))
    return found
