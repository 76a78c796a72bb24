"""The parity report: the chained parts against the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from artifacts import OPTIONAL, GraphError, ModelSpec
from engines import GraphRunner
from export.graphs.probing import TOLERANCES, relative_error, sample_rows
from export.precision.int8 import Int8Report

PARITY_JSON = "parity.json"
BATCHES = (1, 3, 32)
WEAK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchParity:
    """The largest error at one batch size, over all outputs.

    Attributes:
        batch_size: rows.
        max_absolute: largest absolute difference.
        max_relative: the same relative to the largest magnitude of the output it was found in.
        length: of the rows; 0 for the largest, or where all rows have one shape.
    """

    batch_size: int
    max_absolute: float
    max_relative: float
    length: int = field(default=0, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Chained segments and final head against ``full.onnx``, and ``full.onnx`` against where it came from.

    Attributes:
        tolerance: the relative error that would have been a failure.
        chain: per batch size; empty for a model without segments.
        sensitivity: how much the least sensitive output differs between random rows, relative to its magnitude. An
            output that hardly reacts to the input, a saturated softmax for instance, agrees whatever the parts do.
        source: what the whole network was compared with, e.g. the imported file; empty when it was made here.
        source_absolute, source_relative: largest errors of that comparison.
        precision_relative: how much the whole network lost by its precision, against the same in fp32 on random rows;
            in int8 on real ones, as the root of a mean square.
        int8: what quantisation did to the network; ``None`` in other precisions.
    """

    tolerance: float
    chain: tuple[BatchParity, ...] = ()
    sensitivity: float = 0.0
    source: str = ""
    source_absolute: float = 0.0
    source_relative: float = 0.0
    precision_relative: float = 0.0
    int8: Int8Report | None = field(default=None, metadata=OPTIONAL)

    @property
    def is_weak(self) -> bool:
        """Do the outputs react too little to random input for the comparison to prove much?"""
        return bool(self.chain) and self.sensitivity < WEAK

    @property
    def worst(self) -> float:
        """The largest relative error of the chain."""
        return max((item.max_relative for item in self.chain), default=0.0)


def check_parity(
    folder: Path,
    spec: ModelSpec,
    *,
    limit: float | None = None,
    highest: int = 1,
    batches: Sequence[int] = BATCHES,
    seed: int = 2,
) -> tuple[tuple[BatchParity, ...], float]:
    """Chains the segments and the final head of a model folder and compares every output with ``full.onnx``.

    Args:
        folder: holds the files that ``spec`` names.
        spec: the model.
        limit: the relative error that is a failure; ``None``: what the model's precision allows.
        highest: the largest integer that is drawn for integer inputs.
        batches: numbers of rows to run.
        seed: decides the random rows.

    Returns:
        The errors per batch size, then at shorter lengths, and the outputs' sensitivity at the largest batch (see
        ``ParityReport``).

    Raises:
        GraphError: the outputs differ by more than ``limit`` of their magnitude, or are not finite.
    """
    if spec.final_head is None:
        return (), 0.0
    allowed = TOLERANCES[spec.precision.partition("-")[0]] if limit is None else limit
    pixels = spec.stated_preprocessing()
    found = []
    sensitivity = 0.0
    with ExitStack() as stack:
        full = stack.enter_context(GraphRunner(folder / spec.full.file))
        parts = [stack.enter_context(GraphRunner(folder / part.file)) for part in (*spec.segments, spec.final_head)]
        runs = [(rows, 0) for rows in batches] + [(min(batches), length) for length in spec.lengths[:-1]]
        for rows, length in runs:
            specs = [tensor.at_length(length) if length else tensor for tensor in spec.full.inputs]
            inputs = sample_rows(specs, rows, seed=seed, highest=highest, pixels=pixels)
            reference = full.run(inputs)
            tensors = dict(inputs)
            for part in parts:
                tensors.update(part.run({name: tensors[name] for name in part.input_names}))
            found.append(replace(_compare(rows, reference, tensors, limit=allowed), length=length))
            if rows == max(batches) and not length:
                sensitivity = min(_spread(reference[name]) for name in spec.full.answers)
    return tuple(found), sensitivity


def _spread(answer: np.ndarray) -> float:
    """Returns the largest difference between an output's rows relative to its largest magnitude."""
    scale = float(np.abs(answer).max(initial=0))
    return float(np.ptp(answer.astype(np.float64), axis=0).max(initial=0)) / scale if scale > 0 else 0.0


def _compare(
    rows: int, reference: dict[str, np.ndarray], tensors: dict[str, np.ndarray], *, limit: float
) -> BatchParity:
    worst = BatchParity(batch_size=rows, max_absolute=0.0, max_relative=0.0)
    for name, expected in reference.items():
        if not np.isfinite(expected).all():
            raise GraphError(
                f"output '{name}' of the whole network is NaN or infinite on random input, so its parts cannot be "
                "checked against it. If the network takes images, say how they are prepared (--preprocess raw: 0 to "
                "255, unit: 0 to 1), so that it is run on such; otherwise check its weights"
            )
        absolute, relative = relative_error(tensors[name], expected)
        if relative > limit:
            raise GraphError(
                f"the chained segments differ from the whole network: output '{name}' at batch {rows} by "
                f"{absolute:.3g}, {relative:.1e} of its magnitude, where {limit:.0e} is allowed. "
                "Export the network again; if it persists, please report it with the network"
            )
        if relative >= worst.max_relative:
            worst = BatchParity(batch_size=rows, max_absolute=max(absolute, worst.max_absolute), max_relative=relative)
    return worst
