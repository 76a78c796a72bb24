"""``DeviceOptions`` and ``BuildOptions``: a caller's choices for a device and for a build, and their keys.

Options that only some backends know are fields here, so that no signature between a command and its backend names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from artifacts import EngineKey, UsageError
from engines.build_progress import UNWATCHED, BuildWatch
from engines.identity.keys import BackendIdentity
from engines.identity.onnx_facts import read_onnx_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Which device engines run on, and how they work there.

    Attributes:
        index: the ordinal of the GPU, in the order of ``CUDA_VISIBLE_DEVICES``; 0 on the processor.
        cuda_graphs: whether engines on a GPU replay their work as CUDA graphs where they can.
        kernel_folder: where TensorRT-RTX stores the kernels that it compiles for this GPU; ``None``: nowhere.
    """

    index: int = 0
    cuda_graphs: bool = True
    kernel_folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What an engine is built for, and what accompanies its build.

    Attributes:
        max_batch_size: the largest batch.
        batch_sizes: the only batch sizes to build for; () for one engine that takes any, where the backend has such.
        profiles: the layout of TensorRT's shape profiles, one of ``PROFILE_WAYS``; ``None`` for the backend's default.
        timings: where TensorRT stores the kernel times that it measures, from build to build; ``None``: nowhere.
        watch: is informed of the progress of a build, and may cancel it; TensorRT only.
        lengths: the lengths of rows to build for; () where they have one shape.
    """

    max_batch_size: int
    batch_sizes: tuple[int, ...] = ()
    profiles: str | None = None
    timings: Path | None = None
    watch: BuildWatch = UNWATCHED
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, key: EngineKey) -> Self:
        """Returns the options that an engine was built with, to build another one like it."""
        return cls(
            max_batch_size=key.max_batch_size, batch_sizes=tuple(key.batch_sizes), lengths=tuple(key.lengths),
            profiles=key.options.get("profiles"),
        )  # fmt: skip


def check_batch_sizes(sizes: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """Returns batch sizes in ascending order, each once.

    Raises:
        UsageError: a size is not within 1 to ``max_batch_size``.
    """
    checked = tuple(sorted(set(sizes)))
    if max_batch_size < 1 or any(not 1 <= size <= max_batch_size for size in checked):
        raise UsageError(f"batch sizes {checked} must lie within 1 to max_batch_size={max_batch_size}")
    return checked


def make_graph_key(
    onnx: Path,
    options: BuildOptions,
    *,
    backend: str,
    identify: Callable[[], BackendIdentity],
    recorded: Mapping[str, str],
) -> EngineKey:
    """Returns the key of an engine whose batch axis stays one axis, whatever sizes it is for.

    Args:
        onnx: the graph, its batch axis a named dimension.
        options: what it is built for.
        backend: the name of the backend.
        identify: returns the identity of the backend on this machine.
        recorded: the backend's own options, by name.

    Raises:
        UsageError: a batch size is not within 1 to the largest.
        EngineError: ``onnx`` is not an ONNX graph.
        MissingExtraError: the backend is not installed.
    """
    sizes = check_batch_sizes(options.batch_sizes, options.max_batch_size)
    facts, identity = read_onnx_facts(onnx), identify()
    return EngineKey(
        onnx_digest=facts.digest,
        backend=backend,
        backend_version=identity.version,
        device=identity.device,
        precision=facts.precision,
        batch_sizes=sizes,
        max_batch_size=options.max_batch_size,
        options=recorded,
        lengths=options.lengths,
    )
