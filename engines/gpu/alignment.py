"""Addresses as TensorRT wants them: at least 256-byte aligned, which rows in the middle of a buffer need not be.

Whole buffers are. A run that begins at a later row, or the section of a buffer into which a stage answers, is where
its rows are. What does not fit is bound to an aligned buffer of its own, and copied on the GPU before or after the run:
confidences and logits mostly, a few hundred bytes.
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
        self._kept = dict(buffers)
        for specs, copies in ((graph.inputs, self._before), (graph.outputs, self._after)):
            for spec in specs:
                given = buffers[spec.name]
                if given.pointer % ALIGNMENT and given.nbytes:
                    own = device.allocate(spec, len(given))
                    self.arrays[spec.name] = own
                    copies.append((own, given) if copies is self._before else (given, own))

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
