"""The one place that calls the CUDA driver: every error becomes an ``EngineError``, every call can be watched.

The driver is reached through cuda-bindings, whose functions return ``(status, *results)`` and release the interpreter's
lock while they wait. docs/adr/0007-cuda-layer.md tells why it is neither PyCUDA nor the runtime API.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from artifacts import EngineError, MissingExtraError, UsageError

Watcher = Callable[[str], None]
_watchers: list[Watcher] = []


@functools.cache
def load_driver() -> Any:
    """Imports cuda-bindings' driver module; needs no GPU.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "cuda") from error
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Calls a function of the driver and returns its result: ``None``, one value, or a tuple of several.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no NVIDIA driver, or the call failed; the message has the driver's own words.
    """
    for watch in _watchers:
        watch(name)
    try:
        status, *results = getattr(load_driver(), name)(*arguments)
    except (RuntimeError, OSError) as error:  # libcuda itself is missing
        raise EngineError(f"there is no NVIDIA driver on this machine ({error}); install one, or plan for a CPU") from error
    if status != 0:
        raise EngineError(f"CUDA: {name} failed with {_describe(status)}")
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def watch_calls(watcher: Watcher) -> Callable[[], None]:
    """Has ``watcher`` called with the name of every driver call from now on; returns what ends it. For tests."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What a GPU is.

    Attributes:
        index: its ordinal.
        name: as the driver calls it.
        compute_capability: (major, minor).
        driver: the CUDA version that the driver speaks, e.g. ``13.0``.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver: str

    @property
    def architecture(self) -> str:
        """As compilers call it, e.g. ``sm_90``."""
        return f"sm_{self.compute_capability[0]}{self.compute_capability[1]}"

    def __str__(self) -> str:
        """As engine keys have it: not the ordinal, since GPUs of one kind are interchangeable."""
        return f"{self.name} ({self.architecture}), CUDA driver {self.driver}"


def describe_gpu(index: int = 0) -> GpuFacts:
    """Returns what GPU ``index`` is; creates no context.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no NVIDIA driver or it fails.
        UsageError: there is no such GPU.
    """
    driver = load_driver()
    call("cuInit", 0)
    count = call("cuDeviceGetCount")
    if not 0 <= index < count:
        raise UsageError(f"there is no GPU {index}: this machine has {count}, counted from 0")
    device, attributes = call("cuDeviceGet", index), driver.CUdevice_attribute
    version = call("cuDriverGetVersion")
    return GpuFacts(
        index=index,
        name=call("cuDeviceGetName", 256, device).split(b"\0")[0].decode(),
        compute_capability=(
            call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
            call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
        ),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def _describe(status: Any) -> str:
    """Returns name and meaning of a status; asks the driver itself, without going through ``call``."""
    found, text = load_driver().cuGetErrorString(status)
    meaning = text.decode(errors="replace") if found == 0 and text else "unknown to this driver"
    return f"{getattr(status, 'name', status)}: {meaning}"
