"""``DeviceOptions`` and ``BuildOptions``: a caller's choices for a device and for a build, one value each.

Options that only some backends know are fields here, so that no signature between a command and its backend names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from artifacts import EngineKey, UsageError
from engines.build_progress import UNWATCHED, BuildWatch


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
