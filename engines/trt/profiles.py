"""What a TensorRT engine can be asked for, and the options by name that its key records. Pure.

**Profiles.** TensorRT compiles for ranges of shapes, *profiles*, and tunes its kernels for the best shape of each:

``per-batch``  one engine, one profile per batch size; the weights are stored once. The default of TensorRT.
``range``      one engine, one profile from 1 row to the largest batch. The default of TensorRT-RTX, which specialises
               its kernels for the shapes that it meets at run time anyway.
``separate``   one engine per batch size, each with weights of its own: for lazy loading, or where one of them fails.

**Options** are stored by name. The integers of TensorRT's flags moved between versions (``STRONGLY_TYPED`` from 1 to 0,
``STRIP_PLAN`` from 19 to 18 with TensorRT 11), so a stored number would mean another flag there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from artifacts import UsageError, unknown_name

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
PER_BATCH, RANGE, SEPARATE = "per-batch", "range", "separate"
PROFILE_WAYS = (PER_BATCH, RANGE, SEPARATE)
DEFAULT_PROFILES = {TENSORRT: PER_BATCH, TENSORRT_RTX: RANGE}
FORMAT = "1"  # of the files of an engine; another one makes every engine stale
PORTABLE = "portable"  # TensorRT-RTX's own choice: 8.0, 8.6, 8.9 and from 12.0


def choose_profiles(backend: str, wanted: str | None) -> str:
    """Returns the profile way to build with: the wanted one, or the backend's default.

    Raises:
        UsageError: there is no such way.
    """
    if wanted is None:
        return DEFAULT_PROFILES[backend]
    if wanted not in PROFILE_WAYS:
        raise unknown_name("profile way", wanted, PROFILE_WAYS)
    return wanted


def choose_batch_sizes(way: str, wanted: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes of an engine's key: none for ``range``, which takes any, else at least one.

    Args:
        way: one of ``PROFILE_WAYS``.
        wanted: what the caller asks for; () leaves the choice here: every power of two below the largest, and that.
        max_batch_size: the largest batch.

    Raises:
        UsageError: a size is not within 1 to ``max_batch_size``, or sizes were asked for where any is taken.
    """
    sizes = tuple(sorted(set(wanted)))
    if max_batch_size < 1 or any(not 1 <= size <= max_batch_size for size in sizes):
        raise UsageError(f"batch sizes {sizes} must lie within 1 to max_batch_size={max_batch_size}")
    if way == RANGE:
        if sizes:
            raise UsageError(
                f"batch sizes {sizes}: an engine with a range profile takes any from 1 to {max_batch_size}. Leave them "
                f"away, or choose --profiles {PER_BATCH} or {SEPARATE}"
            )
        return ()
    if sizes:
        return sizes
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return tuple(sorted({size for size in powers if size < max_batch_size} | {max_batch_size}))


def engine_options(backend: str, way: str) -> dict[str, str]:
    """Returns the options that decide, besides graph and batch sizes, what is built; docs/adr/0006 says why these."""
    options = {"auxiliary_streams": "0", "format": FORMAT, "profiles": way, "tf32": "off", "typing": "strong"}
    if backend == TENSORRT_RTX:
        return {**options, "compute_capabilities": PORTABLE, "memory": "user-managed"}
    return options


def option_differences(backend: str, options: Mapping[str, str]) -> tuple[str, ...]:
    """Names every option of an engine that this PAME would not have set, with both values."""
    way = options.get("profiles", "")
    expected = engine_options(backend, way if way in PROFILE_WAYS else DEFAULT_PROFILES[backend])
    return tuple(
        f"option {name} is {_show(options.get(name))}, here {_show(expected.get(name))}"
        for name in sorted({*options, *expected})
        if options.get(name) != expected.get(name)
    )


def _show(value: str | None) -> str:
    return "absent" if value is None else repr(value)
