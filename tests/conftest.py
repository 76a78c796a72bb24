"""Configuration of all tests: hypothesis; tests that need a GPU are skipped, with the reason, where there is none."""

from __future__ import annotations

import functools

import pytest
from hypothesis import HealthCheck, settings

from artifacts import PameError

# Before its first draw hypothesis reads all our modules for constants; how long that takes says nothing about a test.
settings.register_profile("pame", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pame")


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
