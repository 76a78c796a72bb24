"""Traces: every sample of a part through every exit of the deployed engines."""

from __future__ import annotations

import numpy as np

from artifacts import Model, Trace, find_task
from artifacts.console import track
from calibration.data.datasets import Dataset
from calibration.tracing.all_exits import ModelChain


def collect_trace(model: Model, chain: ModelChain, data: Dataset, part: str, *, rows: int) -> Trace:
    """Runs a part of the data through all exits; nobody leaves.

    Args:
        model: its exit candidates become the trace's exits.
        chain: its engines with the exit heads, opened for ``rows`` rows.
        data: images; without labels the trace's metric is its agreement.
        part: ``calibrate`` or ``test``.
        rows: batch size of the runs.

    Returns:
        The trace, samples in the order of the part's indices.
    """
    task = find_task(model.spec.task)
    input_name = model.spec.full.inputs[0].name
    indices = data.split(part)
    confidence, metric, agreement, predictions = [], [], [], []
    starts = range(0, len(indices), rows)
    for start in track(starts, description=f"tracing the {part} part", total=len(starts)):
        chunk = indices[start : start + rows]
        found = chain.answers(chain.run({input_name: data.inputs(chunk)}))
        final = found[-1][0]
        confidence.append([certain for _, certain in found])
        agreement.append([task.agreement(answers, final) for answers, _ in found])
        if data.labelled:
            metric.append([task.quality(answers, data.labels_of(chunk)) for answers, _ in found])
        classes = [task.predictions(answers) for answers, _ in found]
        predictions.append(np.array([one for one in classes if one is not None], np.int32))
    classified, agreed = len(predictions[0]) > 0, np.concatenate(agreement, axis=1)
    return Trace(
        exits=tuple(cut.name for cut in model.spec.candidates),
        confidence=np.concatenate(confidence, axis=1),
        metric=np.concatenate(metric, axis=1) if data.labelled else agreed.astype(np.float32),
        agreement=agreed,
        predictions=np.concatenate(predictions, axis=1) if classified else None,
        labels=data.labels_of(indices).astype(np.int32) if classified and data.labelled else None,
        labelled=data.labelled,
    )
