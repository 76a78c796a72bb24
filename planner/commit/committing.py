"""Committing: from a search's best few plans to the one that ships, assembled, timed as stages, measured end to end.

A search prices a stage by its parts. Before anything ships, the few best plans and the plan without exits are merged,
compiled and timed as the stages that they are, their predictions are worked out again from those times, and complete
bundles of them answer the same batches in turns. The least measured time wins (``planner.commit.contenders``). The
prediction of the winner goes into its exit plan, and the measurements of all of them into the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from artifacts import (
    PRECISIONS,
    Certificate,
    ExitPlan,
    InferenceTimeMatrix,
    Trace,
    UsageError,
    open_scratch,
)
from calibration import BatchReader, Samples
from planner.commit.batch_forms import choose_form
from planner.commit.contenders import Commitment, Contender, pick_contenders, rank_contenders, warn_of_staying
from planner.commit.engine_sizes import Sizes, choose_sizes
from planner.commit.exit_plan import PlanOrigin, make_exit_plan
from planner.commit.measuring import draw_batches, measure_plans, open_serve
from planner.commit.planning_case import PlanningCase
from planner.commit.stages import TimedStages, assemble_bundle, measured_length_costs, merge_stages, stage_graphs
from planner.commit.stream_reference import describe_reference
from planner.measure.timing import Clock, EngineSettings, time_graphs
from planner.predict.costs import price_staying
from planner.predict.lengths import LengthCosts, LengthMix, stay_by_length
from planner.predict.replay import NO_EXITS, Exits, PricedExits, evaluate_exits, evaluate_plan
from planner.predict.traffic import Load
from planner.search.problem import SearchResult


@contextmanager
def commit_plan(
    case: PlanningCase,
    result: SearchResult,
    samples: Samples,
    report: Callable[[str], None],
    *,
    clock: Clock = time.perf_counter,
) -> Iterator[Commitment]:  # fmt: skip
    """Assembles and measures the best plans; their bundles exist until the block ends.

    Args:
        case: what is planned for; the run's folder takes the temporary bundles, its engine cache the engines.
        result: the plans that the search found.
        samples: those of the calibrate part are drawn from for the measurement.
        report: takes lines about the progress.
        clock: seconds, for the timing of stages and the budget of the measurement.

    Raises:
        ArtifactError: the run's folder cannot be written; nothing is left behind.
    """
    config = case.config
    plans = pick_contenders(result, config.measure.contenders, config.objective)
    with open_scratch(case.run.root / "contenders") as scratch:
        report(f"merging and timing the stages of {len(plans)} plans")
        stages = _time_stages(case, plans, scratch / "stages", clock)
        priced = _price_fitting(case, plans, stages, report)
        bundles = _assemble_all(case, scratch, priced, stages, result)
        report(f"measuring {len(priced)} plans end to end")
        batches = _draw(case, samples)
        measured, rounds = _measure(case, list(priced), [bundle for _, bundle in bundles], batches, clock)
        allowed = {plan.exits for plan in result.considered if plan.allowed}
        contenders = [
            Contender(
                priced=priced, plan=plan, bundle=bundle, measured_mean_ms=mean, measured_batch_ms=whole,
                measured_p99_ms=p99, stay_ratio=stay, allowed=priced.exits in allowed,
            )
            for priced, (plan, bundle), (mean, whole, p99, stay) in zip(
                priced, bundles, measured.tolist(), strict=True
            )
        ]  # fmt: skip
        first, *others = rank_contenders(contenders, config.objective)
        ranked = (choose_form(case, first, batches, scratch, report, clock), *others)
        if (warning := warn_of_staying(ranked[0], config.tail.stay_allowance, case.reference)) is not None:
            report(warning)
        yield Commitment(contenders=ranked, rounds=rounds, itm=stages.itm)


def _time_stages(case: PlanningCase, plans: Sequence[Exits], folder: Path, clock: Clock) -> TimedStages:
    config = case.config
    merged = merge_stages(case.model, plans, folder, learned=case.learned)
    itm = time_graphs(
        stage_graphs(case.model, merged), case.model.spec, case.run.engines, config.timing, EngineSettings.of(config),
        clock=clock,
    )  # fmt: skip
    return TimedStages(merged=merged, itm=itm, cache=case.run.engines, profiles=config.profiles)


def price_plan(
    trace: Trace, exits: Exits, itm: InferenceTimeMatrix, *, batch_size: int, load: Load | None = None,
    sizes: Sizes | None = None,
) -> PricedExits:  # fmt: skip
    """Evaluates a plan with the measured times of its own stages; ``itm`` holds those of the plan without exits too."""
    load = load or Load.of(batch_size)
    full = measured_length_costs(itm, (), batch_size=batch_size)
    costs = measured_length_costs(itm, exits.cuts, batch_size=batch_size, sizes=sizes)
    if isinstance(full, LengthCosts):
        full_ms = stay_by_length(full, LengthMix.of(trace.lengths, full.lengths), load)
    else:
        full_ms = price_staying(full, load)
    return evaluate_plan(trace, exits, costs, full_ms=full_ms, load=load, percentile=True)


def _price_fitting(
    case: PlanningCase, plans: Sequence[Exits], stages: TimedStages, report: Callable[[str], None]
) -> dict[PricedExits, Sizes]:
    """Prices the plans that are within the limits on engines, leaving out those that are not.

    Returns:
        Every plan with the batch sizes that its stages keep engines for.
    """
    fitting: dict[PricedExits, Sizes] = {}
    for exits in plans:
        try:
            sizes = choose_sizes(exits, evaluate_exits(case.trace, exits), stages, case.config)
        except UsageError as error:
            if not exits.cuts:
                raise
            report(f"left out: {error}")
            continue
        priced = price_plan(
            case.trace, exits, stages.itm, batch_size=case.config.batch_size, load=case.load, sizes=sizes
        )
        fitting[priced] = sizes
    return fitting


def describe_plan(priced: PricedExits, case: PlanningCase, certificate: Certificate | None = None) -> ExitPlan:
    """Returns the exit plan of priced exits; ``certificate``: what is guaranteed of it."""
    origin = PlanOrigin(
        model_digest=case.model.digest, trace_digest=case.trace_digest, full_metric=case.trace.full_metric,
        backend=case.config.backend, threads=case.config.threads, learned=case.learned,
        against="" if case.trace.reference is None else PRECISIONS[0],
    )  # fmt: skip
    return make_exit_plan(priced, case.config, origin, certificate, describe_reference(case.trace, priced.exits))


def _assemble_all(
    case: PlanningCase, scratch: Path, plans: Mapping[PricedExits, Sizes], stages: TimedStages, result: SearchResult
) -> list[tuple[ExitPlan, Path]]:
    inputs = {"model": case.model.digest, "trace": case.trace_digest}
    certificates = {plan.exits: plan.certificate for plan in result.considered}
    assembled = []
    for index, (priced, sizes) in enumerate(plans.items()):
        plan = describe_plan(priced, case, certificates.get(priced.exits))
        bundle = scratch / f"plan_{index:02d}"
        assemble_bundle(bundle, model=case.model, plan=plan, stages=stages, inputs=inputs, sizes=sizes)
        assembled.append((plan, bundle))
    return assembled


def _draw(case: PlanningCase, samples: Samples) -> BatchReader:
    drawn = draw_batches(samples.indices_of("calibrate"), load=case.load, count=case.config.measure.queries)
    return BatchReader(samples, drawn)


def _measure(
    case: PlanningCase, plans: Sequence[PricedExits], bundles: Sequence[Path], batches: BatchReader, clock: Clock
) -> tuple[np.ndarray, int]:
    config = case.config.measure
    without_exits = [priced.exits for priced in plans].index(NO_EXITS)
    with ExitStack() as opened:
        serves = [open_serve(bundle, opened) for bundle in bundles]
        return measure_plans(serves, batches, config, without_exits=without_exits, clock=clock)
