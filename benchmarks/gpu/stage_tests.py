"""Stage a: the tests that need a GPU: device layer, kernels, chain, DLPack, CuPy, PyCUDA where it is installed.

Warnings are no errors here: the machine's packages need not be those of ``make test``.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.outcomes import run_tests
from benchmarks.gpu.stages import Setting

ROOT = Path(__file__).parents[2]
KERNELS = "tests/engines/gpu/test_cuda_kernels.py"  # they compile without a GPU, and unmarked
GPU_TESTS = ("tests/engines/gpu", "tests/engines/test_device_protocol.py", "tests/runtime", "tests/engines/trt")
REHEARSED = ("tests/engines/gpu/test_cuda_device.py",)
_OPTIONS = ["-p", "no:cacheprovider", "-o", "filterwarnings=default", "-o", "timeout=60", "--rootdir", str(ROOT)]


def measure(record: Record, setting: Setting) -> None:
    """Runs the marked tests, then those of the kernels."""
    paths = [str(ROOT / path) for path in (REHEARSED if setting.rehearsal else GPU_TESTS)]
    record.attempt("pytest -m gpu", lambda: _run(record, ["-m", "gpu", *_OPTIONS, *paths]))
    if not setting.rehearsal:
        kernels = ["-m", "not engines", *_OPTIONS, str(ROOT / KERNELS)]
        record.attempt("pytest, kernels", lambda: _run(record, kernels), needs_s=5)


def _run(record: Record, arguments: list[str]) -> dict[str, object]:
    code = run_tests(record, arguments)
    if code not in (0, 5):  # 5: no test was collected, which the counts show
        raise RuntimeError(f"pytest ended with exit code {code}; the rows above name what failed")
    return {"exit_code": code}
