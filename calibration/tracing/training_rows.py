"""Training rows: real inputs of a network's train part, for a precision that is calibrated before anything is cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from artifacts import InputError, ModelSpec, RunFolder, open_model
from calibration.data.samples import Samples, in_chunks
from calibration.data.sources import DataSource, load_run_data
from engines import fit_length
from export import RowSource

_READ_AT_ONCE = 64
_SEED = 1


def rows_of(
    data: DataSource | None, *, parts: str | None = None, report: Callable[[str], None] = lambda _: None
) -> RowSource:  # fmt: skip
    """Returns what an export draws real inputs with; see ``export.RowSource``.

    Args:
        data: ``--data``; ``None``: Fashion-MNIST where it fits the network.
        parts: ``--parts``.
        report: receives notes on the data for the user.
    """
    return functools.partial(_draw_rows, data=data, parts=parts, report=report)


def _draw_rows(
    run: RunFolder, count: int, *, data: DataSource | None, parts: str | None, report: Callable[[str], None]
) -> dict[str, np.ndarray]:  # fmt: skip
    samples = load_run_data(run, data, parts=parts, training=True, report=_say_nothing)
    available = samples.indices_of("train")
    if len(available) == 0:
        raise InputError(
            f"{samples.name} has no samples in its train part, and the ranges of a quantised network are found on "
            "these; give it some: more data, a folder 'train', or --parts train=test:0.5"
        )
    drawn = np.random.default_rng(_SEED).permutation(available)[:count]
    spec = open_model(run.model, remedy=run.remedy("export")).spec
    chunks = [_read(samples, chunk, spec) for chunk in in_chunks(drawn, _READ_AT_ONCE)]
    rows = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    report(f"{len(drawn)} samples of the train part of {samples.name} decide how the network is quantised")
    return rows


def _say_nothing(_: str) -> None:
    """Leaves what there is to say of the data to the steps that follow."""


def _read(samples: Samples, chunk: np.ndarray, spec: ModelSpec) -> Mapping[str, np.ndarray]:
    """Returns the inputs of some samples; rows of several lengths at the largest."""
    inputs, sequence = samples.inputs(chunk), spec.sequence
    if sequence is None:
        return inputs
    names = [tensor.name for tensor in spec.full.inputs]
    longest = replace(sequence, lengths=sequence.lengths[-1:])
    fitted = fit_length([inputs[name] for name in names], spec.full.inputs, longest)
    return {name: np.asarray(array) for name, array in zip(names, fitted, strict=True)}
