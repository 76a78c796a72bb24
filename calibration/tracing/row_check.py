"""Row check: a few real samples among different neighbours; their answers must be the same.

The export proved on random rows that rows are independent. Real inputs may reach what those did not, for networks of
tokens or tables above all, of whose range nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import GraphError, Model
from calibration.data.samples import Samples
from calibration.tracing.all_exits import SegmentRunner

_ALLOWED = 0.05  # of the magnitude: what the coarsest number formats round


def check_rows(model: Model, runner: SegmentRunner, samples: Samples, indices: np.ndarray, *, rows: int) -> None:
    """Runs the same samples at other places among other neighbours and compares the network's answers.

    Args:
        model: the network, for messages.
        runner: its engines, opened for ``rows`` rows.
        samples: the data.
        indices: of the samples to take; fewer than three tell nothing.
        rows: batch size of the runs.

    Raises:
        GraphError: an answer depends on its neighbours.
    """
    share = min(rows // 2, len(indices) // 3)
    if share < 1:
        return
    watched, before, behind = (indices[part * share : (part + 1) * share] for part in range(3))
    first = _answer(runner, samples, np.concatenate([watched, behind]))
    second = _answer(runner, samples, np.concatenate([before, watched]))
    for place, (mine, other) in enumerate(zip(first, second, strict=True)):
        here, there = mine[:share].astype(np.float64), other[share:].astype(np.float64)
        scale = float(np.abs(here).max(initial=0))
        error = float(np.abs(here - there).max(initial=0)) / scale if scale > 0 else 0.0
        if mine.dtype.kind in "iub":  # classes of pixels: of two that are as likely, rounding decides
            error = float((here != there).mean())
        if not error <= _ALLOWED:
            name = model.spec.full.answers[place]
            raise GraphError(
                f"{model.artifact.folder}: rows are not independent: on {share} samples of {samples.name} the answer "
                f"'{name}' differs by {error:.1e} of its magnitude when their neighbours in the batch are others. Such "
                "a network cannot be served in batches; look for a step over the whole batch (a maximum, a mean, "
                "batch normalisation left in training mode)"
            )


def _answer(runner: SegmentRunner, samples: Samples, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    inputs: Mapping[str, np.ndarray] = samples.inputs(indices)
    *_, (answers, _) = runner.answers(runner.run(inputs))
    return answers
