"""``Result``: the answers to a batch, and the parts of a large one joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines import Buffer

Output = np.ndarray | Buffer
Outputs = Output | tuple[Output, ...]
"""One array for a network with one output, otherwise a tuple; arrays on the GPU only where that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The answers to a batch of B queries, in input order. All arrays belong to the caller.

    Attributes:
        outputs: one array (B, ...) for a network with one output, otherwise a tuple of them in the network's order.
            numpy's, or with ``on_device=True`` complete arrays on the GPU (``engines.DeviceArray``), which torch, CuPy
            and others read in place.
        exit_index: (B,) int64, where each query left: 0 .. E-1 an exit of the plan, E the final head.
        confidence: (B,) float32, with which it left.
        latency_ms: (B,) float64, from the start of the call until its answer had arrived. In a batch larger than
            ``max_batch_size`` the later parts wait for the earlier ones, and their waiting counts. Where all stages
            are one CUDA graph, all rows of a part arrive together.
        engine_ms: time of the call that was spent inside engines; where all stages are one CUDA graph, inside it.
    """

    outputs: Outputs
    exit_index: np.ndarray
    confidence: np.ndarray
    latency_ms: np.ndarray
    engine_ms: float


def join_parts(parts: Sequence[Result]) -> Result:
    """Returns the answers to a batch that ran in parts."""
    outputs = [part.outputs if isinstance(part.outputs, tuple) else (part.outputs,) for part in parts]
    return Result(
        outputs=as_outputs(tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))),
        exit_index=np.concatenate([part.exit_index for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        latency_ms=np.concatenate([part.latency_ms for part in parts]),
        engine_ms=sum(part.engine_ms for part in parts),
    )


def as_outputs(arrays: tuple[Output, ...]) -> Outputs:
    """Returns the outputs as ``Result.outputs`` has them."""
    return arrays[0] if len(arrays) == 1 else arrays
