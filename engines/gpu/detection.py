"""Detection of GPUs by the driver itself: no package, no context, no allocation.

``libcuda`` and ``libnvidia-ml`` come with the driver and are loaded where they exist; a machine without them has no
usable GPU. Initialising the driver makes no context, so the host's own CUDA state does not change.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that the driver offers to this process.

    Attributes:
        name: e.g. ``NVIDIA H100 80GB HBM3``.
        capability: compute capability, (major, minor).
        driver: version of the driver, e.g. ``580.95.05``, or its CUDA version where that is not available.
    """

    name: str
    capability: tuple[int, int]
    driver: str

    @property
    def description(self) -> str:
        """For engine keys and messages."""
        major, minor = self.capability
        return f"{self.name} (compute capability {major}.{minor}), driver {self.driver}"


@functools.cache
def find_gpu(index: int = 0) -> Gpu | None:
    """Returns a GPU in the order of ``CUDA_VISIBLE_DEVICES``, or ``None`` where there is no usable one."""
    cuda = _load("libcuda.so.1", "nvcuda.dll")
    if cuda is None or cuda.cuInit(0) != 0:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=(major.value, minor.value),
        driver=_driver_version(cuda),
    )


def _driver_version(cuda: ctypes.CDLL) -> str:
    management = _load("libnvidia-ml.so.1", "nvml.dll")
    if management is not None and management.nvmlInit_v2() == 0:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        found = management.nvmlSystemGetDriverVersion(text, _NAME_BYTES)
        management.nvmlShutdown()
        if found == 0:
            return text.value.decode(errors="replace")
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _load(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
