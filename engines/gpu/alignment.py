"""``AlignedBuffers``: addresses that TensorRT accepts, which must be multiples of 256 bytes.

Whole buffers are aligned so. Rows in the middle of a buffer need not be: those of a later run of a cover, or of the
section of a buffer that receives a stage's answers. Such rows get an aligned buffer of their own and are copied on the
GPU before or after the run: mostly confidences and logits, a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts import GraphSpec
from engines.gpu.arrays import ALIGNMENT, DeviceArray
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call, load_driver


class AlignedBuffers:
    """The buffers of one binding.

    Attributes:
        arrays: name -> what the engine reads or writes, each aligned.
    """

    def __init__(self, graph: GraphSpec, buffers: Mapping[str, DeviceArray], device: CudaDevice) -> None:
        self.arrays = dict(buffers)
        self._before: list[tuple[DeviceArray, DeviceArray]] = []
        self._after: list[tuple[DeviceArray, DeviceArray]] = []
        self._alive = dict(buffers)
        for specs, copies in ((graph.inputs, self._before), (graph.outputs, self._after)):
            for spec in specs:
                buffer = buffers[spec.name]
                if buffer.pointer % ALIGNMENT and buffer.nbytes:
                    aligned = device.allocate(spec, len(buffer))
                    self.arrays[spec.name] = aligned
                    copies.append((aligned, buffer) if copies is self._before else (buffer, aligned))

    def copy_in(self, stream: int) -> None:
        """Enqueues the copies that must come before the run."""
        _copy(self._before, stream)

    def copy_out(self, stream: int) -> None:
        """Enqueues the copies that must come after it."""
        _copy(self._after, stream)


def _copy(copies: list[tuple[DeviceArray, DeviceArray]], stream: int) -> None:
    if not copies:
        return
    where: Any = load_driver().CUstream(stream)
    for target, source in copies:
        call("cuMemcpyDtoDAsync", target.pointer, source.pointer, source.nbytes, where)
