"""Sessions of ONNX Runtime's CUDA provider: its identity on this machine, and the opening of a session on a GPU."""

from __future__ import annotations

import functools
import io
import logging
from contextlib import redirect_stdout
from typing import Any

from artifacts import EngineError, MissingExtraError
from engines.gpu.detection import find_gpu
from engines.host.forks import outlive_forks
from engines.identity.keys import BackendIdentity
from engines.ort.session import load_onnxruntime, ort_errors, session_options, translate_error

ONNXRUNTIME_CUDA = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
PROVIDER_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE searches again for every batch size, while serving
    "use_tf32": "0",  # float32 means float32; for speed, export in fp16
}
GRAPH_FILE = "graph.onnx"
_log = logging.getLogger("pame.engines")


def identify_onnxruntime_cuda(index: int = 0) -> BackendIdentity:
    """Returns the identity of ONNX Runtime's CUDA provider, which chooses kernels for the GPU at opening.

    Raises:
        MissingExtraError: onnxruntime is not installed, or the installed one has no CUDA provider.
        EngineError: there is no GPU.
    """
    ort = load_onnxruntime()
    if PROVIDER not in ort.get_available_providers():
        raise MissingExtraError("onnxruntime-gpu", ONNXRUNTIME_CUDA)
    gpu = find_gpu(index)
    if gpu is None:
        raise EngineError(
            f"{ONNXRUNTIME_CUDA} needs an NVIDIA GPU and its driver, and there is no GPU {index} here. "
            "Build and serve on the machine that has one, or with --engine onnxruntime"
        )
    return BackendIdentity(version=ort.__version__, device=gpu.description)


def open_cuda_session(model: str, *, index: int, stream: int | None, what: str) -> Any:
    """Opens a session on one GPU whose work goes to ``stream``.

    Args:
        model: the file.
        index: the ordinal of the GPU.
        stream: the handle of the stream; ``None``: a stream of onnxruntime's own.
        what: for messages, e.g. "open stage_00".

    Raises:
        EngineError: onnxruntime refuses the graph, or would run it on the processor.
    """
    ort = load_onnxruntime()
    _load_cuda_libraries(ort)
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = True  # unlike on the processor: so it was measured, and a capture is one block
    chosen = {**PROVIDER_OPTIONS, "device_id": str(index)}
    if stream is not None:
        chosen["user_compute_stream"] = str(stream)
    try:
        providers = [(PROVIDER, chosen), "CPUExecutionProvider"]
        session = outlive_forks(ort.InferenceSession(model, options, providers=providers))
    except ort_errors() as error:
        raise translate_error(error, what) from error
    if PROVIDER not in session.get_providers():  # onnxruntime only prints the reason, and goes on
        raise EngineError(
            f"onnxruntime {ort.__version__} failed to {what}: its CUDA provider could not be loaded, and it would run "
            "on the processor instead. Install the CUDA and cuDNN libraries that it was built for: "
            f"pip install 'pame[{ONNXRUNTIME_CUDA}]'"
        )
    return session


@functools.cache
def _load_cuda_libraries(ort: Any) -> None:
    """Loads cuBLAS, cuDNN and their kin from where pip installs them; onnxruntime looks for them by name alone.

    Those that the process has loaded already, with torch for instance, stay as they are.
    """
    if not hasattr(ort, "preload_dlls"):
        return
    with redirect_stdout(io.StringIO()) as said:  # it prints what it does not find; the session then says what to do
        ort.preload_dlls()
    if said.getvalue():
        _log.info("CUDA libraries: %s", said.getvalue().strip())
