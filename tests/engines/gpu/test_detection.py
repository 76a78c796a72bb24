"""Detection of the GPU of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.gpu.detection import Gpu, find_gpu
from engines.trt.library import is_portable_target


def test_the_driver_is_asked() -> None:
    gpu = find_gpu()
    if gpu is None:
        assert not Path("/proc/driver/nvidia/version").exists()
        return
    assert gpu.name
    assert gpu.capability >= (5, 0)
    assert gpu.driver[0].isdigit() or gpu.driver.startswith("CUDA ")
    assert find_gpu(63) is None


@pytest.mark.parametrize(
    ("capability", "targeted"),
    [((7, 5), False), ((8, 0), True), ((8, 6), True), ((8, 7), False), ((8, 9), True), ((9, 0), False),
     ((10, 0), False), ((12, 0), True), ((12, 1), True)],
)  # fmt: skip
def test_tensorrt_rtx_does_not_target_every_gpu(capability: tuple[int, int], targeted: bool) -> None:
    assert is_portable_target(Gpu(name="a", capability=capability, driver="580")) is targeted
