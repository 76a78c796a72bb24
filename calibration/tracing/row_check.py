"""Row check: a few real samples among different neighbours; their answers must be the same.

The export proved on random rows that rows are independent. Real inputs may reach what those did not, for networks of
tokens or tables above all, of whose range nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import FINAL_HEAD, GraphError, Model
from calibration.data.samples import Samples
from calibration.tracing.all_exits import SegmentRunner
from engines import row_lengths

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
        error = _relative_error(mine[:share], other[share:])
        if not error <= _ALLOWED:
            name = model.spec.full.answers[place]
            raise GraphError(
                f"{model.artifact.folder}: rows are not independent: on {share} samples of {samples.name} the answer "
                f"'{name}' differs by {error:.1e} of its magnitude when their neighbours in the batch are others. Such "
                "a network cannot be served in batches; look for a step over the whole batch (a maximum, a mean, "
                "batch normalisation left in training mode)"
            )


def check_padding(model: Model, runner: SegmentRunner, samples: Samples, indices: np.ndarray, *, rows: int) -> None:
    """Runs the same samples once more padded to the largest length and compares what every exit says.

    The export proved the network's own answers; exit heads came later.

    Args:
        model: the network, for messages; without lengths nothing is done.
        runner: its engines with the exit heads.
        samples: the data.
        indices: of the samples to take.
        rows: how many of them at most.

    Raises:
        GraphError: an exit reads the padding.
    """
    sequence = model.spec.sequence
    if sequence is None:
        return
    inputs = samples.inputs(indices[:rows])
    buckets = np.array([sequence.bucket(int(length)) for length in row_lengths(inputs[sequence.mask])])
    for bucket in sorted(set(buckets.tolist()) - {sequence.lengths[-1]}):
        chosen = {name: array[buckets == bucket] for name, array in inputs.items()}
        short, long = (runner.answers(runner.run(chosen, longest=longest)) for longest in (False, True))
        names = [*(cut.name for cut in model.spec.candidates), FINAL_HEAD]
        for name, (answers, confidence), (padded, unsure) in zip(names, short, long, strict=True):
            error = max(map(_relative_error, (*answers, confidence), (*padded, unsure)))
            if not error <= _ALLOWED:
                raise GraphError(
                    f"{model.artifact.folder}: the exit '{name}' reads the padding of its rows: at length {bucket} "
                    f"they are answered otherwise when padded to {sequence.lengths[-1]}, by {error:.1e} of the "
                    "magnitude, so an answer would depend on its neighbours. Train a head that reads the mask, or the "
                    "first position alone"
                )


def _relative_error(mine: np.ndarray, other: np.ndarray) -> float:
    if mine.dtype.kind in "iub":  # classes of pixels: of two that are as likely, rounding decides
        return float((mine != other).mean())
    here, there = mine.astype(np.float64), other.astype(np.float64)
    scale = float(np.abs(here).max(initial=0))
    return float(np.abs(here - there).max(initial=0)) / scale if scale > 0 else 0.0


def _answer(runner: SegmentRunner, samples: Samples, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    inputs: Mapping[str, np.ndarray] = samples.inputs(indices)
    *_, (answers, _) = runner.answers(runner.run(inputs))
    return answers
