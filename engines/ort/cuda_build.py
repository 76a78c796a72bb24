"""Building ONNX Runtime engines for a GPU: the graph is stored unchanged, after it was opened once.

The CUDA provider chooses its kernels when a session is opened, so there is nothing to compile beforehand. An engine is
the graph with its weights, proven to open on this GPU, under a key with the GPU, its driver and the version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from artifacts import EngineKey
from engines.options import BuildOptions, make_graph_key
from engines.ort.blocked_layout import load_onnx
from engines.ort.cuda_session import (
    GRAPH_FILE,
    ONNXRUNTIME_CUDA,
    PROVIDER_OPTIONS,
    identify_onnxruntime_cuda,
    open_cuda_session,
)


class OrtCudaBuilder:
    """Makes engines for ONNX Runtime's CUDA provider."""

    def __init__(self, options: BuildOptions) -> None:
        self._options = options

    @property
    def backend(self) -> str:
        return ONNXRUNTIME_CUDA

    def key(self, onnx: Path) -> EngineKey:
        """Returns the key of the engine that ``build`` would make; errors as ``make_graph_key``.

        Raises:
            EngineError: there is no GPU.
        """
        return make_graph_key(
            onnx, self._options, backend=ONNXRUNTIME_CUDA, identify=identify_onnxruntime_cuda, recorded=PROVIDER_OPTIONS
        )

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Copies the graph and its weights into ``folder`` and opens them once.

        Raises:
            EngineError: onnxruntime refuses the graph on this GPU.
        """
        del key
        copy_graph(onnx, folder)
        open_cuda_session(str(folder / GRAPH_FILE), index=0, stream=None, what=f"load {onnx}")


def copy_graph(onnx: Path, folder: Path) -> None:
    """Copies an ONNX file as ``GRAPH_FILE`` and the files of its weights under their own names."""
    shutil.copyfile(onnx, folder / GRAPH_FILE)
    model = load_onnx().load(onnx, load_external_data=False)
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    for location in sorted(locations):
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(onnx.parent / location, folder / location)
