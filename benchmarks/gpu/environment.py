"""Environment of a measurement: the GPU, its driver, the versions of everything, without importing any of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "torch", "triton", "cuda-bindings",
    "cuda-core", "nvidia-cuda-nvrtc", "nvidia-cublas", "nvidia-cudnn-cu13", "cupy-cuda13x", "pycuda", "tensorrt",
    "tensorrt-rtx", "tensorrt_rtx_cu13_bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "pytest",
)  # fmt: skip
_QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,temperature.gpu,power.limit,pstate"


def describe_environment() -> dict[str, object]:
    """Returns what a figure must be read with; works on every machine that has Python."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()} {platform.release()}",
        "command": " ".join(sys.argv),
        "nvidia_smi": _ask_nvidia_smi(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ask_nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not on this machine"
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {error}"
    return (done.stdout or done.stderr).strip()


def load_cuda_libraries() -> dict[str, str]:
    """Loads cuBLAS, cuDNN and their kin for ONNX Runtime, which looks for them by name alone.

    torch for CUDA brings them and has them loaded once it is imported; where it is not installed, onnxruntime's own
    search is asked.
    """
    try:
        import torch
    except ImportError as error:
        reason = str(error)
    else:
        if torch.version.cuda is not None:
            return {"cuda_libraries": f"of torch {torch.__version__}"}
        reason = f"torch {torch.__version__} is not built for CUDA"
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
        return {"cuda_libraries": f"by onnxruntime.preload_dlls ({reason})"}
    return {"cuda_libraries": f"none loaded ({reason})"}
