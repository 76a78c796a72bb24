"""``KernelCache``: the kernels that TensorRT-RTX compiled on this machine, a runtime cache that processes share.

TensorRT-RTX finishes its kernels when an engine first runs, for the GPU in use. All engines of a device share one cache
of them. With a folder to store it in, it is read when the first engine is bound and written when the device closes;
TensorRT-RTX itself rejects a cache that does not fit, and then starts an empty one.
"""

from __future__ import annotations

import logging
from typing import Any

from engines.gpu.cuda_device import CudaDevice
from engines.trt.cache_files import blob_path, read_blob, update_blob

_log = logging.getLogger("pame.engines")


class KernelCache:
    """A runtime cache of TensorRT-RTX, made with the first engine's configuration."""

    def __init__(self, device: CudaDevice, version: str) -> None:
        self._device = device
        gpu = device.cuda.gpu
        self._path = None
        folder = device.options.kernel_folder
        if folder is not None:
            self._path = blob_path(folder, "runtime", version=version, device=gpu.description)
        self._cache: Any = None

    def attach(self, run_config: Any) -> None:
        """Makes an ``IRuntimeConfig`` use the cache; the GPU's context must be current."""
        if self._cache is None:
            kernels = self._cache = run_config.create_runtime_cache()
            stored = None if self._path is None else read_blob(self._path)
            if stored is not None and not kernels.deserialize(stored):
                _log.info("TensorRT-RTX does not take the kernels in %s; starting an empty cache", self._path)
        run_config.set_runtime_cache(self._cache)

    def close(self) -> None:
        """Stores the compiled kernels; the last writer wins."""
        kernels = self._cache
        if self._path is not None and kernels is not None:
            data = bytes(memoryview(kernels.serialize()))
            update_blob(self._path, lambda _: data)
        self._cache = None


def kernel_cache(device: CudaDevice, version: str) -> KernelCache:
    """Returns the one cache of a device for a version of TensorRT-RTX; the device closes it."""
    return device.attached(f"TensorRT-RTX {version}", lambda: KernelCache(device, version))
