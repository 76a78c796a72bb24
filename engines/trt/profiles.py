"""Profile layouts and build options of TensorRT engines, by the names that a key records. Pure.

**Profiles.** TensorRT compiles for ranges of shapes, *profiles*, and tunes its kernels for the best shape of each:

``per-batch``  one engine, one profile per batch size; the weights are stored once. The default of TensorRT.
``range``      one engine, one profile from 1 row to the largest batch. The default of TensorRT-RTX, which specialises
               its kernels for the shapes that it meets at run time anyway.
``separate``   one engine per batch size, each with weights of its own: for lazy loading, or where one size fails.

**Options** are stored by name. The integers of TensorRT's flags moved between versions (``STRONGLY_TYPED`` from 1 to 0,
``STRIP_PLAN`` from 19 to 18 with TensorRT 11), so a stored number would mean another flag there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from artifacts import UsageError, unknown_name
from engines.options import check_batch_sizes

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
PER_BATCH, RANGE, SEPARATE = "per-batch", "range", "separate"
PROFILE_WAYS = (PER_BATCH, RANGE, SEPARATE)
DEFAULT_PROFILES = {TENSORRT: PER_BATCH, TENSORRT_RTX: RANGE}
FORMAT = "1"  # of the files of an engine; another one makes every engine stale
PORTABLE = "portable"  # TensorRT-RTX's own choice: 8.0, 8.6, 8.9 and from 12.0


def choose_profiles(backend: str, requested: str | None) -> str:
    """Returns the profile layout to build with: the requested one, or the backend's default.

    Raises:
        UsageError: there is no such layout.
    """
    if requested is None:
        return DEFAULT_PROFILES[backend]
    if requested not in PROFILE_WAYS:
        raise unknown_name("profile layout", requested, PROFILE_WAYS)
    return requested


def choose_batch_sizes(layout: str, requested: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes of an engine's key: () for ``range``, which takes any, else at least one.

    Args:
        layout: one of ``PROFILE_WAYS``.
        requested: what the caller asks for; () stands for every power of two below the largest batch, and that.
        max_batch_size: the largest batch.

    Raises:
        UsageError: a size is not within 1 to ``max_batch_size``, or sizes were requested where any is taken.
    """
    sizes = check_batch_sizes(requested, max_batch_size)
    if layout == RANGE:
        if sizes:
            raise UsageError(
                f"batch sizes {sizes}: an engine with a range profile takes any from 1 to {max_batch_size}. Omit "
                f"them, or choose --profiles {PER_BATCH} or {SEPARATE}"
            )
        return ()
    if sizes:
        return sizes
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return tuple(sorted({size for size in powers if size < max_batch_size} | {max_batch_size}))


def engine_options(backend: str, layout: str) -> dict[str, str]:
    """Returns the options that shape an engine, besides its graph and batch sizes; docs/adr/0006 explains them."""
    options = {"auxiliary_streams": "0", "format": FORMAT, "profiles": layout, "tf32": "off", "typing": "strong"}
    if backend == TENSORRT_RTX:
        return {**options, "compute_capabilities": PORTABLE, "memory": "user-managed"}
    return options


def option_differences(backend: str, options: Mapping[str, str]) -> tuple[str, ...]:
    """Returns every option of an engine that this version of PAME would set otherwise, with both values."""
    layout = options.get("profiles", "")
    expected = engine_options(backend, layout if layout in PROFILE_WAYS else DEFAULT_PROFILES[backend])
    return tuple(
        f"option {name} is {_show(options.get(name))}, here {_show(expected.get(name))}"
        for name in sorted({*options, *expected})
        if options.get(name) != expected.get(name)
    )


def _show(value: str | None) -> str:
    return "absent" if value is None else repr(value)
