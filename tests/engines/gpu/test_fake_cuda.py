"""The GPU tests on a fake driver: CudaDevice, cuda-bindings' calls and the kernels' source, without a GPU.

``fake_cuda/driver.cpp`` is compiled into a ``libcuda.so.1`` that another process finds instead of NVIDIA's. What passes
here has right arguments, addresses, waits and kernels; nothing was run on a GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.gpu.chain.kernels import CHAIN_SOURCE

ROOT = Path(__file__).parents[3]
SUITES = (
    "tests/engines/test_device_protocol.py",
    "tests/engines/gpu/test_cuda_device.py",
    "tests/engines/gpu/test_cuda_interop.py",
    "tests/engines/trt/test_run.py",
    "tests/runtime/hosting/test_arenas.py",
    "tests/runtime/test_captured_chain.py",
    "tests/runtime/test_cuda_provider.py",
    "tests/runtime/test_on_gpu.py",
)


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a libcuda.so.1 that acts as the driver of two GPUs."""
    pytest.importorskip("cuda.bindings.driver", reason="drives a GPU: pip install 'pame[cuda]'")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("compiles a fake driver: needs g++ on Linux")
    folder = tmp_path_factory.mktemp("fake_cuda")
    (folder / "kernels.inc").write_text(CHAIN_SOURCE)
    source = Path(__file__).parent / "fake_cuda" / "driver.cpp"
    options = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-fvisibility=hidden"]
    command = [compiler, *options, "-Wl,-soname,libcuda.so.1", f"-I{folder}", str(source)]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    return folder


@pytest.mark.slow
def test_the_gpu_tests_pass_on_a_fake_driver(fake_driver: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake_driver), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run([*command, *SUITES], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= 80, done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert not any("needs an NVIDIA GPU" in line for line in skipped), skipped
