"""Batch forms: whether the committed plan's batches go stage by stage, or through one graph of all its stages.

Where the whole batch counts, no answer is wanted before the last one, and a single call spares what the host does
between the stages. Both forms of the graph become engines, are proven against the stages row by row, and answer the
same batches in turns with them. One graph is chosen where it is faster by more than two measurements of the same plan
differ: the stages hand out each answer as soon as it is there, and their engines are needed beside it in any case (for
streams, shadowed rows, other thresholds after an alarm, and hosts whose requests share stages).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts import (
    BUNDLE_JSON,
    EXIT_PLAN_JSON,
    MANIFEST,
    Artifact,
    BatchForm,
    BundleSpec,
    EngineError,
    GraphError,
    GraphSpec,
    OneGraphSpec,
    new_artifact,
    open_artifact,
    read_json,
    write_json,
)
from calibration import BatchReader, as_batch
from engines import DEFAULT_BACKEND, BuildOptions, ensure_engine, open_engine
from planner.commit.contenders import NOISE, Contender, warn_of_staying
from planner.commit.measuring import Serve, measure_plans
from planner.commit.one_graph import FLAT, GUARDED, Likeness, why_not_flat, write_form
from planner.commit.planning_case import PlanningCase
from planner.measure.timing import Clock
from planner.predict.objectives import BATCH
from runtime import OpenBundle, Runtime, RuntimeOptions, open_bundle, without_leaving

STAGES = "stages"
"""The form of a plan whose batches go stage by stage."""
_STEM, _NEVER = "one_graph", float("inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltForm:
    """A plan as one graph.

    Attributes:
        graph: its interface.
        onnx: its file.
        engine: the folder of its engine.
    """

    graph: GraphSpec
    onnx: Path
    engine: Path


def choose_form(
    case: PlanningCase, winner: Contender, batches: BatchReader, folder: Path, report: Callable[[str], None],
    clock: Clock,
) -> Contender:  # fmt: skip
    """Returns the winner in the form in which its batches are answered fastest; as it is unless the batch counts.

    Args:
        case: what is planned for.
        winner: the plan that is to be committed, in a bundle of stages.
        batches: that it was measured on.
        folder: for graphs, engines and the new bundle; must exist.
        report: takes lines about what was measured, and about forms that were left out.
        clock: seconds, for the budget of the measurement.
    """
    if case.config.objective != BATCH or not winner.plan.exits:
        return winner
    artifact = open_artifact(winner.bundle, kind="bundle", remedy=case.run.remedy("planner"))
    spec = read_json(artifact.path(BUNDLE_JSON), BundleSpec)
    if spec.backend != DEFAULT_BACKEND or spec.sequence is not None:
        what = f"on {spec.backend}" if spec.sequence is None else "whose rows have several lengths"
        report(f"batches go stage by stage: plans {what} are not built as one graph")
        return winner
    with ExitStack() as stack:
        opened = open_bundle(winner.bundle)
        stack.callback(opened.close)
        forms = _build_forms(artifact, spec, folder, batches[0], report)
        runtimes = {form: _open_form(opened, built, stack) for form, built in forms.items()}
        stages = _open_form(opened, None, stack)
        for form in list(forms):
            try:
                _prove(form, runtimes[form], stages, batches)
            except GraphError as error:
                report(f"left out: {error}")
                del forms[form]
        if not forms:
            return winner
        never = stack.enter_context(Runtime(without_leaving(spec), opened.engine_sets, opened.device, _UNWATCHED))
        serves = [(_serve(stages), _serve(never))]
        for form in forms:
            built = _build(artifact, spec, form, folder / f"{form}-stay", threshold=_NEVER)
            serves.append((_serve(runtimes[form]), _serve(_open_form(opened, built, stack))))
        report("measuring the plan as one graph beside its stages")
        measured, _ = measure_plans(serves, batches, case.config.measure, without_exits=0, clock=clock)
    return _settle(case, winner, dict(zip((STAGES, *forms), measured, strict=True)), (artifact, forms), report)


_UNWATCHED = RuntimeOptions(drift=None)


def _build_forms(
    artifact: Artifact, spec: BundleSpec, folder: Path, batch: Mapping[str, np.ndarray], report: Callable[[str], None]
) -> dict[str, BuiltForm]:
    """Builds the forms that the network can have here."""
    reason = why_not_flat(artifact, spec, folder, batch)
    if reason is not None:
        report(f"left out: one graph without If: {reason}")
    found = {}
    for form in (GUARDED,) if reason is not None else (GUARDED, FLAT):
        try:
            found[form] = _build(artifact, spec, form, folder / form)
        except (EngineError, GraphError) as error:
            report(f"left out: one graph ({form}): {error}")
    return found


def _build(
    artifact: Artifact, spec: BundleSpec, form: str, folder: Path, *, threshold: float | None = None
) -> BuiltForm:  # fmt: skip
    onnx = folder / f"{_STEM}.onnx"
    graph = replace(write_form(artifact, spec, form, onnx, threshold=threshold), name=_STEM)
    options = BuildOptions(max_batch_size=spec.max_batch_size)
    return BuiltForm(
        graph=graph, onnx=onnx,
        engine=ensure_engine(onnx, graph, folder / "engines", backend=spec.backend, options=options),
    )  # fmt: skip


def _open_form(opened: OpenBundle, built: BuiltForm | None, stack: ExitStack) -> Runtime:
    """Opens a runtime over the bundle's stages, and over one graph of them where that is given."""
    spec, engine = opened.spec, None
    if built is not None:
        engine = open_engine(built.engine, built.graph, threads=spec.threads, device=opened.device)
        spec = replace(spec, one_graph=OneGraphSpec(graph=built.graph, engine=""))
    return stack.enter_context(Runtime(spec, opened.engine_sets, opened.device, _UNWATCHED, engine))


def _serve(runtime: Runtime) -> Serve:
    return lambda inputs: runtime.run(as_batch(inputs)).latency_ms


def _prove(form: str, found: Runtime, stages: Runtime, batches: BatchReader) -> None:
    """Compares answers row by row; raises ``GraphError`` where a row is answered otherwise."""
    likeness = Likeness(stages.spec, f"one graph ({form})")
    for batch in batches:
        answered, wanted = found.run(as_batch(batch)), stages.run(as_batch(batch))
        outputs = answered.outputs if isinstance(answered.outputs, tuple) else (answered.outputs,)
        likeness.compare([np.asarray(each) for each in outputs], answered.exit_index, answered.confidence, wanted)


def _settle(
    case: PlanningCase, winner: Contender, measured: Mapping[str, np.ndarray],
    built: tuple[Artifact, Mapping[str, BuiltForm]], report: Callable[[str], None],
) -> Contender:  # fmt: skip
    """Returns the winner in the form that wins, with its measurements, in a bundle that has it."""
    artifact, forms = built
    batch_ms = {form: float(times[1]) for form, times in measured.items()}
    fastest = min(forms, key=batch_ms.__getitem__)
    candidate = _in_form(winner, fastest, batch_ms, measured)
    stays, stayed = (
        warn_of_staying(each, case.config.tail.stay_allowance, case.reference) for each in (candidate, winner)
    )
    chosen: BuiltForm | None = forms[fastest]
    if batch_ms[fastest] * (1 + NOISE) > batch_ms[STAGES]:
        chosen = None
    elif stays is not None and stayed is None:
        report(f"left out: one graph ({fastest}): a batch of which no row leaves takes more than the allowance")
        chosen = None
    if chosen is None:
        candidate = _in_form(winner, STAGES, batch_ms, measured)
    return replace(candidate, bundle=_write_bundle(artifact, candidate, chosen, winner.bundle.with_name("in_form")))


def _in_form(
    winner: Contender, form: str, batch_ms: Mapping[str, float], measured: Mapping[str, np.ndarray]
) -> Contender:  # fmt: skip
    """Returns the winner in a form. It was measured beside the other plans in stages, at another moment than the forms:
    its times there are changed by what a batch takes in the form, of what it takes in stages."""
    plan = replace(winner.plan, batch_form=BatchForm(form=form, batch_ms=batch_ms))
    if form == STAGES:
        return replace(winner, plan=plan)
    pace = winner.measured_batch_ms / batch_ms[STAGES]
    mean, whole, p99, stay = measured[form].tolist()
    return replace(
        winner, plan=plan, measured_mean_ms=pace * mean, measured_batch_ms=pace * whole, measured_p99_ms=pace * p99,
        stay_ratio=winner.stay_ratio * stay,
    )  # fmt: skip


def _write_bundle(artifact: Artifact, candidate: Contender, built: BuiltForm | None, folder: Path) -> Path:
    """Writes the bundle once more, with the plan of the candidate and with the graph that its batches go through."""
    spec = replace(read_json(artifact.path(BUNDLE_JSON), BundleSpec), plan=candidate.plan)
    with new_artifact(folder, kind="bundle", inputs=artifact.manifest.inputs) as staging:
        shutil.copytree(artifact.folder, staging, dirs_exist_ok=True)
        (staging / MANIFEST).unlink()
        if built is not None:
            for file in built.onnx.parent.glob(f"{built.onnx.name}*"):  # and its weights, where they lie beside it
                shutil.copyfile(file, staging / "stages" / file.name)
            shutil.copytree(built.engine, staging / "engines" / _STEM)
            graph = replace(built.graph, file=f"stages/{built.onnx.name}")
            spec = replace(spec, one_graph=OneGraphSpec(graph=graph, engine=f"engines/{_STEM}"))
        write_json(staging / BUNDLE_JSON, spec)
        write_json(staging / EXIT_PLAN_JSON, candidate.plan)
    return folder
