"""Rehearsal: the stages without a GPU, on the fake CUDA driver, which shows that they work and nothing else.

    python -m benchmarks.gpu.rehearsal FOLDER     builds libcuda.so.1 there and prints the folder

The driver (``tests/engines/gpu/fake_cuda``) keeps a GPU's memory in that of the host. So a session of ONNX Runtime on
the processor can stand in for one of its CUDA provider: it takes the same calls and computes over the very addresses
that were bound. Figures of a rehearsal are never quoted.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from artifacts import UsageError

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tests" / "engines" / "gpu" / "fake_cuda" / "driver.cpp"
PRETENDED = "Pretended GPU"


def build_driver(folder: Path) -> Path:
    """Compiles the fake CUDA driver; returns the folder for ``LD_LIBRARY_PATH``.

    Raises:
        UsageError: there is no C++ compiler, or it fails.
    """
    from engines.gpu.chain.kernels import CHAIN_SOURCE

    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise UsageError("a rehearsal compiles a fake CUDA driver: install g++")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.inc").write_text(CHAIN_SOURCE)
    options = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-fvisibility=hidden"]
    command = [compiler, *options, "-Wl,-soname,libcuda.so.1", f"-I{folder}", str(DRIVER)]
    done = subprocess.run(
        [*command, "-o", str(folder / "libcuda.so.1"), "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UsageError(f"{compiler} fails to compile {DRIVER}: {done.stderr.strip()}")
    return folder


def on_pretended_gpu() -> bool:
    """Tells whether this process sees the fake CUDA driver."""
    from engines.gpu.detection import find_gpu

    gpu = find_gpu()
    return gpu is not None and gpu.name == PRETENDED


class HostSession:
    """A session on the processor behind the calls of one on the GPU; runs when the work of its stream is done."""

    def __init__(self, model: str, stream: int) -> None:
        from engines.ort.session import open_session, session_options

        self._stream = stream

        self._session: Any = open_session(model, session_options(1), what="open")
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def io_binding(self) -> Any:
        binding = self._session.io_binding()

        def on_host(bind: Callable[..., None]) -> Callable[..., None]:
            return lambda name, _device, _index, *layout: bind(name, "cpu", 0, *layout)

        return SimpleNamespace(
            real=binding, bind_input=on_host(binding.bind_input), bind_output=on_host(binding.bind_output)
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        del options
        from engines.gpu.driver import call

        call("cuStreamSynchronize", self._stream)  # of the whole context, it would disturb captures of other threads
        self._session.run_with_iobinding(binding.real)


def install_stand_ins() -> str:
    """Lets the processor stand in for ONNX Runtime's CUDA provider in this process; returns what was done."""
    if not on_pretended_gpu():
        return "none: there is no fake CUDA driver"
    from engines.ort import cuda_build, cuda_run, cuda_session
    from engines.ort.session import load_onnxruntime

    load_onnxruntime().get_available_providers = lambda: [cuda_session.PROVIDER]
    for module in (cuda_build, cuda_run):
        module.open_cuda_session = lambda model, *, stream=0, **_: HostSession(model, stream)  # type: ignore[attr-defined]
    return "a session on the processor for ONNX Runtime's CUDA provider"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the driver; prints its folder or why there is none."""
    (folder,) = sys.argv[1:] if argv is None else argv
    try:
        print(build_driver(Path(folder)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
