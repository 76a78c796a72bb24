"""The engine that a run's trace was collected on, which commands keep where none is named."""

from __future__ import annotations

from artifacts import MANIFEST, RunFolder, read_manifest
from engines import BACKENDS


def traced_backend(run: RunFolder) -> str | None:
    """Returns the backend of the run's trace; ``None`` where it has no trace, or one of a backend that is not ours."""
    if not (run.trace / MANIFEST).is_file():
        return None
    backend = read_manifest(run.trace).parameters.get("backend")
    return backend if backend in BACKENDS else None
