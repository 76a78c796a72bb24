"""``EngineDescription``: interface, profiles, memory and layers of one engine."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts import EngineKey


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """Everything that ``python -m engines inspect`` shows of one engine.

    Attributes:
        engine, key: its folder, and what it was built for.
        inputs, outputs: name, dtype and row shape of each tensor; the batch comes on top.
        profiles: the batch sizes that it was compiled for, in words, in the order of the backend's own numbering.
        activation_bytes: scratch memory of a run, per profile or per file; empty where the backend does not report it.
        layers: in the order of execution; empty where the backend does not report them, or not on this machine.
        unverified: what could not be verified on this machine; ``None`` where everything was.
    """

    engine: str
    key: EngineKey
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profiles: tuple[str, ...]
    activation_bytes: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    unverified: str | None = None
