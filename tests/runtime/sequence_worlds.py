"""A bundle of a small encoder whose rows have several lengths, made without a planning run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import ExitPlan, InferenceTimeMatrix, LengthTimes, Model, PlannedExit, PredictedLatency, RunFolder
from engines import GraphRunner
from export import add_heads, build_missing_heads, export_model
from planner.commit.stages import TimedStages, assemble_bundle, merge_stages
from planner.predict.costs import stage_row
from planner.predict.replay import Exits
from tests.export.export_graphs import GraphBuilder
from tests.export.sequence_graphs import LENGTHS, draw_sequences, sequence_options, write_sequence_encoder

EXITS = ("hidden0", "hidden1")
MOST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class SequenceRun:
    """An exported encoder with exit heads, and a bundle with both of its exits.

    Attributes:
        run: the run's folder.
        model: with heads at ``EXITS``.
        bundle: its folder; about half of the rows that come to an exit leave there.
        thresholds: of the exits.
    """

    run: RunFolder
    model: Model
    bundle: Path
    thresholds: tuple[float, ...]


def make_sequence_run(folder: Path, *, shared: bool = True) -> SequenceRun:
    """Exports, adds untrained heads, and assembles a bundle for ONNX Runtime with made-up times."""
    run = RunFolder(root=folder / "run")
    path = write_sequence_encoder(GraphBuilder, folder / "encoder.onnx", shared=shared)
    model = export_model(run, sequence_options(path)).model
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    thresholds = _medians(model)
    exits = Exits(cuts=EXITS, thresholds=thresholds)
    merged = merge_stages(model, [exits], folder / "stages")
    itm = _made_up_times([stage_row(*bounds) for bounds in merged])
    stages = TimedStages(merged=merged, itm=itm, cache=run.engines)
    plan = _make_plan(model, exits)
    assemble_bundle(folder / "bundle", model=model, plan=plan, stages=stages, inputs={})
    return SequenceRun(run=run, model=model, bundle=folder / "bundle", thresholds=exits.thresholds)


def answer_alone(
    model: Model, rows: dict[str, np.ndarray], thresholds: tuple[float, ...]
) -> list[tuple[int, np.ndarray]]:
    """Answers each row by itself, cut off at its own length, through the parts of the model folder.

    Returns:
        Per row the exit where it leaves, and its answer there.
    """
    spec = model.spec
    assert spec.final_head is not None
    graphs = {
        graph.name: GraphRunner(model.path(graph)) for graph in (*spec.segments, *spec.heads.values(), spec.final_head)
    }
    answers = []
    for row, count in enumerate(rows["attention_mask"].sum(axis=1)):
        tensors = {name: array[row : row + 1, :count] for name, array in rows.items()}
        for cut, segment in zip(spec.cuts, spec.segments, strict=True):
            tensors |= _run(graphs[segment.name], tensors)
            if cut.name not in EXITS:
                continue
            head = spec.heads[cut.name]
            tensors |= _run(graphs[head.name], tensors)
            if tensors[str(head.confidence)][0] >= np.float32(thresholds[EXITS.index(cut.name)]):
                answers.append((EXITS.index(cut.name), tensors[head.answers[0]][0]))
                break
        else:
            final = _run(graphs[spec.final_head.name], tensors)
            answers.append((len(EXITS), final[spec.final_head.answers[0]][0]))
    return answers


def _run(runner: GraphRunner, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runner.run({name: tensors[name] for name in runner.input_names})


def _medians(model: Model) -> tuple[float, ...]:
    """Returns thresholds in the middle of the confidences, between two of them that lie apart."""
    rows = draw_sequences([1 + place % LENGTHS[-1] for place in range(64)], columns=LENGTHS[-1], seed=1)
    tensors, found = dict(rows), []
    for cut, segment in zip(model.spec.cuts, model.spec.segments, strict=True):
        with GraphRunner(model.path(segment)) as runner:
            tensors |= _run(runner, tensors)
        if cut.name in EXITS:
            head = model.spec.heads[cut.name]
            with GraphRunner(model.path(head)) as runner:
                confidence = np.sort(_run(runner, tensors)[str(head.confidence)])
            place = 20 + int(np.argmax(np.diff(confidence[20:44])))
            found.append(float(confidence[place : place + 2].mean()))
    return tuple(found)


def _made_up_times(rows: list[str]) -> InferenceTimeMatrix:
    def times(scale: float) -> dict[str, tuple[float, ...]]:
        return {row: tuple(scale * (1 + size) for size in (1, 4, MOST_ROWS)) for row in rows}

    shorter = {
        str(length): LengthTimes(median_ms=times(length / LENGTHS[-1]), spread_ms=times(0.0)) for length in LENGTHS[:-1]
    }
    return InferenceTimeMatrix(
        backend="onnxruntime", threads=1, batch_sizes=(1, 4, MOST_ROWS), median_ms=times(1.0), spread_ms=times(0.0),
        fixed=False, environment={}, largest_length=LENGTHS[-1], shorter=shorter,
    )  # fmt: skip


def _make_plan(model: Model, exits: Exits) -> ExitPlan:
    nothing = PredictedLatency(full_ms=1, mean_ms=1, batch_ms=1, oracle_mean_ms=1)
    planned = tuple(
        PlannedExit(cut=cut, threshold=threshold, leaving_share=0.4, metric=None, arrival_ms=1)
        for cut, threshold in zip(exits.cuts, exits.thresholds, strict=True)
    )
    return ExitPlan(
        model_digest=model.digest, trace_digest="", search="joint", tolerance=0.1, delta=None, batch_size=MOST_ROWS,
        backend="onnxruntime", threads=1, exits=planned, full_metric=1, predicted_metric=1, predicted=nothing,
    )  # fmt: skip
