"""What all tests share: those that need a GPU run where one is, and say elsewhere why they do not."""

from __future__ import annotations

import functools

import pytest

from artifacts import PameError


@functools.cache
def why_no_gpu() -> str | None:
    """Returns what keeps the tests from using a GPU; ``None`` where nothing does."""
    from engines.gpu.cuda_device import CudaDevice

    try:
        CudaDevice().close()
    except PameError as error:
        return f"needs an NVIDIA GPU: {error}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and (reason := why_no_gpu()):
        pytest.skip(reason)
