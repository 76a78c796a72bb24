"""Trace collecting: every sample of a part through every exit of the deployed engines."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from artifacts import MAX_SOFTMAX, Answers, Model, Task, Trace, describe_choice
from artifacts.console import track
from calibration.data.samples import Samples, in_chunks
from calibration.tracing.all_exits import SegmentRunner
from calibration.tracing.reference import ReferenceNetwork, reference_graph
from engines import row_lengths


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chunks:
    """What was collected so far: one array (E + 1, n, ...) per chunk of n samples."""

    confidence: list[np.ndarray] = field(default_factory=list)
    metric: list[np.ndarray] = field(default_factory=list)
    agreement: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)


def collect_trace(
    model: Model, runner: SegmentRunner, samples: Samples, indices: np.ndarray, task: Task, *, rows: int
) -> Trace:
    """Runs some of the samples through all exits; no row leaves.

    Args:
        model: its exit candidates become the trace's exits.
        runner: its engines with the exit heads, opened for ``rows`` rows.
        samples: read ``rows`` at a time; without labels the trace's metric is its agreement.
        indices: which samples, at least one.
        task: judges the answers.
        rows: batch size of the runs.

    Returns:
        The trace, samples in the order of the indices.
    """
    found = _Chunks()
    chunks = in_chunks(indices, rows)
    graph = reference_graph(model, runner.engine.backend)
    reference = None if graph is None else ReferenceNetwork(model, graph, threads=runner.engine.threads)
    for chunk in track(chunks, description="tracing samples", total=-(-len(indices) // rows)):
        inputs = samples.inputs(chunk)
        answered = runner.answers(runner.run(inputs))
        if model.spec.sequence is not None:
            found.lengths.append(row_lengths(inputs[model.spec.sequence.mask]).astype(np.int32))
        targets = samples.targets(chunk) if samples.labelled else None
        _judge(found, task, [answers for answers, _ in answered], targets)
        if reference is not None:
            reference.add(inputs, [answers for answers, _ in answered], task, targets)
        found.confidence.append(np.stack([confidence for _, confidence in answered]))
        if task.confidence == MAX_SOFTMAX and model.spec.full.confidence is not None:
            probabilities = model.spec.settings.get("confidence") == "max"
            choices = [describe_choice(answers[0], probabilities=probabilities) for answers, _ in answered]
            found.features.append(np.stack(choices))
    agreement = np.concatenate(found.agreement, axis=1).astype(np.float32)
    if reference is not None:
        reference.close()
    return Trace(
        exits=tuple(cut.name for cut in model.spec.candidates),
        confidence=np.concatenate(found.confidence, axis=1),
        metric=np.concatenate(found.metric, axis=1) if samples.labelled else agreement,
        agreement=agreement,
        predictions=np.concatenate(found.predictions, axis=1) if found.predictions else None,
        counts=np.concatenate(found.counts, axis=1) if found.counts else None,
        labels=np.concatenate(found.labels) if found.labels else None,
        features=np.concatenate(found.features, axis=1) if found.features else None,
        labelled=samples.labelled,
        lengths=np.concatenate(found.lengths) if found.lengths else None,
        reference=None if reference is None else reference.collected(),
    )


def _judge(found: _Chunks, task: Task, answers: list[Answers], targets: np.ndarray | None) -> None:
    """Adds what a task says of the answers of every exit, the final head's last, to the same samples."""
    found.agreement.append(np.stack([task.agreement(given, answers[-1]) for given in answers]))
    classes = [task.predictions(given) for given in answers]
    if classes[0] is not None:
        found.predictions.append(np.array(classes, np.int32))
    if targets is None:
        return
    found.metric.append(np.stack([task.quality(given, targets) for given in answers]))
    counts = [task.counts(given, targets) for given in answers]
    if counts[0] is not None:
        found.counts.append(np.array(counts, np.float64))
    if classes[0] is not None:
        found.labels.append(targets.astype(np.int32))
