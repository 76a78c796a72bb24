"""Which device a backend's engines run on."""

from __future__ import annotations

from pathlib import Path

from artifacts import UsageError
from engines.host.host_device import HostDevice
from engines.identity.keys import CUDA_BACKENDS
from engines.protocols import Device


def open_device(backend: str, index: int = 0, *, cuda_graphs: bool = True, kernel_folder: Path | None = None) -> Device:
    """Opens the device for the engines of a backend: a GPU for those of CUDA, the processor for all others.

    Args:
        backend: e.g. ``onnxruntime`` or ``tensorrt``.
        index: the ordinal of the GPU, in the order of ``CUDA_VISIBLE_DEVICES``.
        cuda_graphs: whether engines on a GPU replay their work as CUDA graphs where they can.
        kernel_folder: where TensorRT-RTX keeps the kernels that it compiles for this GPU; ``None``: nowhere.

    Raises:
        UsageError: there is no such GPU, or the backend runs on the processor and ``index`` is not 0.
        MissingExtraError: the CUDA packages are not installed.
        EngineError: there is no NVIDIA driver, or it fails.
    """
    if backend in CUDA_BACKENDS:
        from engines.gpu.cuda_device import CudaDevice

        return CudaDevice(index, cuda_graphs=cuda_graphs, kernel_folder=kernel_folder)
    if index != 0:
        raise UsageError(f"device={index}: engines of {backend} run on the processor; leave it away")
    return HostDevice()
