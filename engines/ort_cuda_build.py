"""Building ONNX Runtime engines for a GPU: the graph is kept as it is, and tried.

The CUDA provider picks its kernels when a session is opened, so there is nothing to compile beforehand. An engine is
the graph with its weights, proven to open on this GPU, under a key that says which GPU, driver and version that was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from artifacts import EngineKey, UsageError
from engines.keys import ONNXRUNTIME_CUDA
from engines.onnx_facts import read_onnx_facts
from engines.ort_cuda_common import GRAPH_FILE, PROVIDER_OPTIONS, identify_onnxruntime_cuda, open_cuda_session
from engines.ort_entries import load_onnx


class OrtCudaBuilder:
    """Makes engines for ONNX Runtime's CUDA provider."""

    @property
    def backend(self) -> str:
        return ONNXRUNTIME_CUDA

    def key(self, onnx: Path, *, batch_sizes: Sequence[int], max_batch_size: int) -> EngineKey:
        """Returns the key of the engine that ``build`` would make.

        Args:
            onnx: the graph, its batch axis a named dimension.
            batch_sizes: the only batch sizes that it shall take; () for any. The session is the same either way.
            max_batch_size: the largest batch.

        Raises:
            UsageError: a batch size is not within 1 to ``max_batch_size``.
            EngineError: ``onnx`` is no ONNX graph, or there is no GPU.
            MissingExtraError: onnxruntime's CUDA provider is not installed.
        """
        sizes = tuple(sorted(set(batch_sizes)))
        if max_batch_size < 1 or any(not 1 <= size <= max_batch_size for size in sizes):
            raise UsageError(f"batch sizes {sizes} must lie within 1 to max_batch_size={max_batch_size}")
        facts, identity = read_onnx_facts(onnx), identify_onnxruntime_cuda()
        return EngineKey(
            onnx_digest=facts.digest,
            backend=ONNXRUNTIME_CUDA,
            backend_version=identity.version,
            device=identity.device,
            precision=facts.precision,
            batch_sizes=sizes,
            max_batch_size=max_batch_size,
            options=PROVIDER_OPTIONS,
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
