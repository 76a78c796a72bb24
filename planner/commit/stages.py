"""Stages and bundles: a chosen plan on disk.

Every distinct stage (from one exit to the next) is merged, compiled and timed once, however many plans share it. The
plan without exits has one stage, the whole network.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    BUNDLE_JSON,
    COMMAND,
    EXIT_PLAN_JSON,
    MANIFEST,
    BundleSpec,
    ExitPlan,
    GraphSpec,
    InferenceTimeMatrix,
    LearnedConfidence,
    Model,
    StageSpec,
    TensorSpec,
    new_artifact,
    write_json,
)
from engines import BuildOptions, ensure_engine
from export import merge_stage
from planner.measure.timing import TimedGraph
from planner.predict.costs import host_row, price_stage, stage_row
from planner.predict.lengths import LengthCosts
from planner.predict.matrices import keep_sizes
from planner.predict.replay import Exits

StageBounds = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedStage:
    """A merged graph from the exit ``after`` (or the input) to the exit ``until`` (or the output)."""

    after: str | None
    until: str | None
    graph: GraphSpec
    onnx: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStages:
    """Merged stages with their times and their engines.

    Attributes:
        merged: the stages by their bounds.
        itm: holds their rows.
        cache: the compiled engines; what is missing is built.
        profiles: TensorRT's shape profiles, as in ``PlanConfig``.
    """

    merged: Mapping[StageBounds, MergedStage]
    itm: InferenceTimeMatrix
    cache: Path
    profiles: str | None = None


def stage_bounds(exits: Sequence[str]) -> tuple[StageBounds, ...]:
    """Returns (after, until) of every stage of a plan with these exits."""
    return tuple(itertools.pairwise([None, *exits, None]))


def merge_stages(
    model: Model, plans: Iterable[Exits], folder: Path, *, learned: Mapping[str, LearnedConfidence] | None = None
) -> dict[StageBounds, MergedStage]:
    """Merges every stage that one of the plans needs, each once, in the order of the data flow.

    Args:
        model: the model folder.
        plans: choices of exits.
        folder: where the ``.onnx`` files go; the whole network stays where it is.
        learned: cut -> the confidence of its exit, in the place of that of its head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = {bounds for plan in plans for bounds in stage_bounds(plan.cuts)}
    stages: dict[StageBounds, MergedStage] = {}
    for after, until in sorted(needed, key=lambda bounds: _order(model, bounds)):
        if after is None and until is None:
            graph, path = model.spec.full, model.path(model.spec.full)
        else:
            start, stop = _order(model, (after, until))
            path = folder / f"stage_{start + 1:03d}_{stop:03d}.onnx"  # the same name, so the same engine, in every plan
            confidence = None if until is None or learned is None else learned.get(until)
            graph = merge_stage(model, after=after, until=until, path=path, confidence=confidence)
        stages[after, until] = MergedStage(after=after, until=until, graph=graph, onnx=path)
    return stages


def _order(model: Model, bounds: StageBounds) -> tuple[int, int]:
    after, until = bounds
    start = -1 if after is None else model.spec.cut_index(after)
    return start, len(model.spec.cuts) if until is None else model.spec.cut_index(until)


def stage_graphs(model: Model, stages: Mapping[StageBounds, MergedStage]) -> tuple[TimedGraph, ...]:
    """Returns the stages as something to time, each with the gather behind it."""
    graphs = []
    for (after, until), stage in stages.items():
        carried = () if until is None else model.spec.cuts[model.spec.cut_index(until)].tensors
        graphs.append(
            TimedGraph(row=stage_row(after, until), onnx=stage.onnx, graph=stage.graph, gather=until, carried=carried)
        )
    return tuple(graphs)


def measured_stage_costs(
    itm: InferenceTimeMatrix, exits: Sequence[str], *, batch_size: int,
    sizes: Mapping[StageBounds, tuple[int, ...]] | None = None,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Returns the cost of each stage of a plan for 0..B rows, from a matrix that holds the stages themselves.

    The counterpart of ``NetworkCosts.plan_costs`` once the stages are merged and timed: nothing is estimated.

    Args:
        itm: holds the stages' rows.
        exits: of the plan.
        batch_size: B.
        sizes: the batch sizes that the stages keep engines for; all that were timed when left out.
    """
    costs = []
    for bounds in stage_bounds(exits):
        own = itm if sizes is None else keep_sizes(itm, sizes[bounds])
        engine, host = own.row_ms(stage_row(*bounds)), host_row(own, *bounds)
        costs.append(price_stage(engine, host, own, batch_size=batch_size))
    return tuple(costs)


def measured_length_costs(
    itm: InferenceTimeMatrix, exits: Sequence[str], *, batch_size: int,
    sizes: Mapping[StageBounds, tuple[int, ...]] | None = None,
) -> Sequence[np.ndarray] | LengthCosts:  # fmt: skip
    """As ``measured_stage_costs``, at every length where the matrix has several."""
    if not itm.lengths:
        return measured_stage_costs(itm, exits, batch_size=batch_size, sizes=sizes)
    return LengthCosts(
        by_length={
            length: measured_stage_costs(itm.at_length(length), exits, batch_size=batch_size, sizes=sizes)
            for length in itm.lengths
        }
    )


def assemble_bundle(
    folder: Path, *, model: Model, plan: ExitPlan, stages: TimedStages, inputs: Mapping[str, str],
    sizes: Mapping[StageBounds, tuple[int, ...]] | None = None,
) -> None:  # fmt: skip
    """Publishes a bundle: stages, engines, ``bundle.json`` and ``exit_plan.json``.

    Args:
        folder: where the bundle will be.
        model: the model that was planned for.
        plan: the exit plan.
        stages: among them those of the plan.
        inputs: digests of what the bundle was made from.
        sizes: the batch sizes that the stages keep engines for; all that were timed when left out.

    Raises:
        ArtifactError: it cannot be written; what was there is untouched.
    """
    with new_artifact(folder, kind="bundle", inputs=inputs) as staging:
        (staging / "stages").mkdir()
        specs = []
        for index, bounds in enumerate(stage_bounds([planned.cut for planned in plan.exits])):
            own = stages if sizes is None else replace(stages, itm=keep_sizes(stages.itm, sizes[bounds]))
            specs.append(_add_stage(staging, index, bounds, plan, own))
        bundle = BundleSpec(
            name=model.spec.name, task=model.spec.task, backend=plan.backend, threads=plan.threads,
            max_batch_size=plan.batch_size, inputs=model.spec.full.inputs, outputs=_answers(model.spec.full),
            stages=tuple(specs), plan=plan, settings=model.spec.settings,
            preprocessing=model.spec.stated_preprocessing(), text=model.spec.text, sequence=model.spec.sequence,
            classes=model.spec.classes,
        )  # fmt: skip
        if bundle.text is not None:
            shutil.copyfile(model.artifact.path(bundle.text.tokenizer), staging / bundle.text.tokenizer)
        write_json(staging / BUNDLE_JSON, bundle)
        write_json(staging / EXIT_PLAN_JSON, plan)


def _answers(graph: GraphSpec) -> tuple[TensorSpec, ...]:
    return tuple(graph.output(name) for name in graph.answers)


def _add_stage(staging: Path, index: int, bounds: StageBounds, plan: ExitPlan, stages: TimedStages) -> StageSpec:
    name, stage, itm = f"stage_{index:02d}", stages.merged[bounds], stages.itm
    file, engine = f"stages/{name}.onnx", f"engines/{name}"
    shutil.copyfile(stage.onnx, staging / file)
    weights = stage.onnx.with_name(f"{stage.onnx.name}.data")
    if weights.is_file():
        shutil.copyfile(weights, staging / "stages" / weights.name)
    options = BuildOptions(
        max_batch_size=plan.batch_size, batch_sizes=itm.batch_sizes if itm.fixed else (), profiles=stages.profiles
    )
    built = ensure_engine(stage.onnx, stage.graph, stages.cache, backend=plan.backend, options=options)
    shutil.copytree(built, staging / engine)
    row = stage_row(*bounds)
    shorter = {str(length): itm.at_length(length).row_ms(row) for length in itm.lengths[:-1]}
    return StageSpec(
        graph=replace(stage.graph, name=name, file=file),
        engine=engine,
        threshold=plan.exits[index].threshold if index < len(plan.exits) else None,
        median_ms=_by_size(itm, itm.row_ms(row)),
        shorter_ms={length: _by_size(itm, medians) for length, medians in shorter.items()},
    )


def _by_size(itm: InferenceTimeMatrix, medians: tuple[float, ...]) -> dict[str, float]:
    return {str(size): ms for size, ms in zip(itm.batch_sizes, medians, strict=True)}


def publish_bundle(
    assembled: Path, folder: Path, *, inputs: Mapping[str, str], parameters: Mapping[str, Any], command: str
) -> None:
    """Publishes an assembled bundle once more in its final place, with its whole origin in the manifest.

    Args:
        assembled: the bundle, as it was measured.
        folder: where it is to be.
        inputs: name -> digest of the artifacts that it was made from.
        parameters: the settings that decided its content.
        command: the command line that makes it again.
    """
    notes = {COMMAND: command}
    with new_artifact(folder, kind="bundle", inputs=inputs, parameters=parameters, notes=notes) as staging:
        shutil.copytree(assembled, staging, dirs_exist_ok=True)
        (staging / MANIFEST).unlink()
