"""Checks of a bundle: its stages fit together and follow its exit plan, and a caller's task is the one it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from artifacts import BundleSpec, GraphSpec, SchemaError, Task, TensorSpec, UsageError
from engines import EngineSet
from runtime.remedy import PLAN_AGAIN


def check_stages(spec: BundleSpec, engine_sets: Sequence[EngineSet], *, remedy: str = PLAN_AGAIN) -> None:
    """Checks that every stage finds its inputs and its engines, answers what the bundle promises, and lets rows leave
    as the exit plan says.

    Args:
        spec: the bundle.
        engine_sets: one per stage.
        remedy: the command that makes the bundle again, for the message.

    Raises:
        SchemaError: they do not; says which stage and why.
    """
    found = chain(
        _find_length_misfits(spec),
        *(
            _find_engine_misfits(spec, [engines.at_length(length) for engines in engine_sets])
            for length in spec.lengths or (0,)
        ),
        _find_flow_misfits(spec),
        *(_find_answer_misfits(spec, stage.graph) for stage in spec.stages),
        _find_one_graph_misfits(spec),
        _find_threshold_misfits(spec),
        _find_plan_misfits(spec),
    )
    why = next(found, None)
    if why is not None:
        raise SchemaError(
            f"the stages of bundle '{spec.name}' do not fit together: {why}. Make it again with: {remedy}"
        )


def check_task(spec: BundleSpec, task: Task | None) -> Task | None:
    """Returns a caller's own task.

    Raises:
        UsageError: the bundle is for a task of another name.
    """
    if task is not None and task.name != spec.task:
        raise UsageError(
            f"task {task.name}: bundle '{spec.name}' is for the task '{spec.task}'; pass the task that it was planned "
            "with, or none"
        )
    return task


def _find_length_misfits(spec: BundleSpec) -> Iterator[str]:
    for stage in spec.stages:
        if stage.graph.lengths not in ((), spec.lengths):
            yield f"stage '{stage.graph.name}' has the lengths {stage.graph.lengths}, the bundle {spec.lengths}"
    if spec.sequence is None:
        return
    mask = next((tensor for tensor in spec.inputs if tensor.name == spec.sequence.mask), None)
    if mask is None or mask.length_axes != (0,) or len(mask.row_shape) != 1:
        yield f"the mask '{spec.sequence.mask}' is no input (batch, length)"


def _find_engine_misfits(spec: BundleSpec, engine_sets: Sequence[EngineSet]) -> Iterator[str]:
    if not spec.stages or len(spec.stages) != len(engine_sets):
        yield f"it has {len(spec.stages)} stages and engines for {len(engine_sets)}"
    for engines in engine_sets:
        if engines.covers.largest < spec.max_batch_size:
            covered = f"at most {engines.covers.largest} of {spec.max_batch_size} rows"
            yield f"the engines of '{engines.graph.name}' cover {covered}"


def _find_flow_misfits(spec: BundleSpec) -> Iterator[str]:
    present: dict[str, TensorSpec] = {tensor.name: tensor for tensor in spec.inputs}
    for index, stage in enumerate(spec.stages):
        graph = stage.graph
        for tensor in graph.inputs:
            if present.get(tensor.name) != tensor:
                yield f"stage '{graph.name}' reads {tensor}, but there is {present.get(tensor.name)}"
        read = {tensor.name for later in spec.stages[index + 1 :] for tensor in later.graph.inputs}
        if again := sorted(read & {*graph.answers, graph.confidence}):
            yield f"later stages read {again}, which stage '{graph.name}' answers with"
        present |= {tensor.name: tensor for tensor in graph.outputs}


def _find_answer_misfits(spec: BundleSpec, graph: GraphSpec) -> Iterator[str]:
    expected = [(tensor.dtype, tensor.row_shape) for tensor in spec.outputs]
    answers = [(graph.output(name).dtype, graph.output(name).row_shape) for name in graph.answers]
    if answers != expected:
        yield f"stage '{graph.name}' answers {answers}, expected {expected}"
    if graph.confidence is None:
        yield f"stage '{graph.name}' computes no confidence"
        return
    confidence = graph.output(graph.confidence)
    if (confidence.dtype, confidence.row_shape) != ("float32", ()):
        yield f"the confidence of stage '{graph.name}' is {confidence}, expected one float32 per row"


def _find_one_graph_misfits(spec: BundleSpec) -> Iterator[str]:
    """The one graph stands for all stages: it reads the network's inputs and says besides where each row left."""
    if spec.one_graph is None:
        return
    graph = spec.one_graph.graph
    if spec.sequence is not None:
        yield f"'{graph.name}' is for rows of one length, the bundle for {spec.lengths}"
    if graph.inputs != spec.inputs:
        yield f"'{graph.name}' reads {graph.inputs}, the network {spec.inputs}"
    yield from _find_answer_misfits(spec, graph)
    rest = [spec for spec in graph.outputs if spec.name not in (*graph.answers, graph.confidence)]
    if [(tensor.dtype, tensor.row_shape) for tensor in rest] != [("int64", ())]:
        yield f"'{graph.name}' has the outputs {rest} besides, expected one int64 per row"


def _find_threshold_misfits(spec: BundleSpec) -> Iterator[str]:
    *early, last = spec.stages
    for stage in early:
        if stage.threshold is None:
            yield f"stage '{stage.graph.name}' has threshold None; only the last stage has none"
    if last.threshold is not None:
        yield f"stage '{last.graph.name}' has threshold {last.threshold}; the last stage must have none"


def _find_plan_misfits(spec: BundleSpec) -> Iterator[str]:
    """Rows leave by the thresholds of the stages; statistics, reports and certificates go by the exits of the plan."""
    exits, early = spec.plan.exits, spec.stages[:-1]
    if len(exits) != len(early):
        yield (
            f"the exit plan has {len(exits)} exits, but the bundle {len(spec.stages)} stages; expected one more than "
            "exits"
        )
    cuts = [exit_.cut for exit_ in exits]
    if len(set(cuts)) != len(cuts):
        yield f"the exit plan has two exits at one cut ({', '.join(cuts)})"
    for exit_, stage in zip(exits, early, strict=False):
        if exit_.threshold != stage.threshold:
            yield (
                f"stage '{stage.graph.name}' has threshold {stage.threshold}, but the exit plan {exit_.threshold} at "
                f"'{exit_.cut}'"
            )
