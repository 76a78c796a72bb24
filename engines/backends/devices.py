"""Devices of backends: the GPU or the processor that the engines of a backend run on."""

from __future__ import annotations

from engines.backends.table import find_backend
from engines.options import DeviceOptions
from engines.protocols import Device

_DEFAULT = DeviceOptions()


def open_device(backend: str, options: DeviceOptions = _DEFAULT) -> Device:
    """Opens the device for the engines of a backend: a GPU for those of CUDA, the processor for all others.

    Args:
        backend: one of ``BACKENDS``.
        options: which device, and how engines work on it.

    Raises:
        UsageError: no such backend or GPU, or the backend runs on the processor and the options name another device.
        MissingExtraError: the CUDA packages are not installed.
        EngineError: there is no NVIDIA driver, or it fails.
    """
    return find_backend(backend).device(options)
