"""From a search's best few plans to the one that is committed: assembled, timed as stages, measured end to end.

A search prices a stage by its parts. Before anything ships, the few best plans and the plan without exits are merged,
compiled and timed as the stages that they are, their predictions are worked out again from those times, and complete
bundles of them answer the same batches in turns. The least measured time wins. But plans that are within ``NOISE`` of
the fastest are twins as far as anybody can measure: of those the one with the fewest exits wins, then the one that
costs least when nobody leaves, which is measured as well, so that the choice does not flip with the noise of the
timings. The prediction of the winner goes into its exit plan, and the measurements of all of them into the record.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import (
    ArtifactError,
    BundleSpec,
    Certificate,
    ExitPlan,
    InferenceTimeMatrix,
    Model,
    RunFolder,
    Trace,
    UsageError,
)
from artifacts.console import say, track
from artifacts.store import recover_artifact
from calibration import Batch, Samples, as_batch
from planner.commit.engine_sizes import Sizes, choose_sizes
from planner.commit.stages import (
    MergedStage,
    StageBounds,
    assemble_bundle,
    measured_stage_costs,
    merge_stages,
    stage_graphs,
)
from planner.commit.stream_reference import describe_reference
from planner.config import MeasureConfig, PlanConfig
from planner.measure.timing import Clock, time_graphs
from planner.predict.costs import price_staying
from planner.predict.percentiles import TAIL_QUANTILE
from planner.predict.replay import NO_EXITS, ChosenExits, PlanFigures, evaluate_exits, evaluate_plan
from planner.predict.traffic import Load
from planner.search.greedy import SearchResult
from planner.search.prices import BATCH, MEAN, P99, objective_ms

NOISE = 0.02  # two measurements of the same plan differ by that much
Serve = Callable[[Batch], np.ndarray]
_STAY_BATCHES = 4  # per round; such a batch takes as long as the whole network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningCase:
    """What is planned for.

    Attributes:
        run: where its artifacts lie.
        model: the network.
        trace: the calibration data.
        trace_digest: of the artifact that the trace came from.
        config: what was asked for.
    """

    run: RunFolder
    model: Model
    trace: Trace
    trace_digest: str
    config: PlanConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A plan that was assembled and measured.

    Attributes:
        figures: from the times of its stages.
        plan: what its bundle says.
        bundle: the assembled bundle, in a temporary folder.
        measured_mean_ms: mean latency of a query, end to end.
        measured_batch_ms: until the last answer of a batch, in the mean.
        measured_p99_ms: what 99 % of the queries did not exceed.
        stay_ratio: time of a batch that nobody leaves, of that of the plan without exits; measured.
        allowed: False for a plan that was measured for comparison only.
    """

    figures: PlanFigures
    plan: ExitPlan
    bundle: Path
    measured_mean_ms: float
    measured_batch_ms: float
    measured_p99_ms: float
    stay_ratio: float
    allowed: bool

    def measured_ms(self, objective: str) -> float:
        """Returns what an objective of ``planner.search.prices`` looks at."""
        return {MEAN: self.measured_mean_ms, BATCH: self.measured_batch_ms, P99: self.measured_p99_ms}[objective]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Commitment:
    """The contenders; the first is committed.

    Attributes:
        contenders: the winner, then the others, the fastest first.
        rounds: how often every batch went through every plan.
        itm: the times of all their stages.
    """

    contenders: tuple[Contender, ...]
    rounds: int
    itm: InferenceTimeMatrix

    @property
    def winner(self) -> Contender:
        return self.contenders[0]


def pick_contenders(result: SearchResult, count: int, objective: str = MEAN) -> tuple[ChosenExits, ...]:
    """Returns plans to measure, in the order of the result, each set of exits once: with its best thresholds.

    The best of the allowed ones first; then those expected within ``NOISE`` of it, the best of every number of exits,
    fewest first; then the others by what is expected. To these ``count`` come the best plan of every smaller number of
    exits, the plan without exits, and the reference.
    """
    with_exits = [one for one in result.considered if one.allowed and one.figures.chosen.cuts]
    by_cuts = {one.figures.chosen.cuts: one for one in reversed(with_exits)}
    allowed = [one for one in with_exits if by_cuts[one.figures.chosen.cuts] is one]
    best = min((objective_ms(one.figures.times, objective) for one in allowed), default=0.0)
    heads = {one.step: one for one in reversed(allowed)}

    def order(place: int) -> tuple[int, int]:
        one = allowed[place]
        twin = objective_ms(one.figures.times, objective) <= (1 + NOISE) * best and heads[one.step] is one
        return (1, one.step) if twin and place else (2 if place else 0, place)

    places = sorted(range(len(allowed)), key=order)[:count]
    fewest = min((allowed[place].step for place in places), default=1)
    fewer = [heads[step].figures.chosen for step in range(1, fewest) if step in heads]
    picked = {NO_EXITS, *fewer, *(allowed[place].figures.chosen for place in places)}
    if result.reference is not None:
        picked.add(result.reference)
    known = [one.figures.chosen for one in result.considered]
    return tuple(sorted(picked, key=known.index))


def rank_contenders(contenders: Sequence[Contender], objective: str) -> tuple[Contender, ...]:
    """Returns the winner, then the others by what was measured.

    The winner has the fewest exits of those allowed plans that are within ``NOISE`` of the fastest allowed one, then
    the lowest cost when nobody leaves, then the best measurement.
    """
    ordered = sorted(contenders, key=lambda one: one.measured_ms(objective))
    allowed = [one for one in ordered if one.allowed]
    fastest = allowed[0].measured_ms(objective)
    twins = [one for one in allowed if one.measured_ms(objective) <= (1 + NOISE) * fastest]
    winner = min(twins, key=lambda one: (len(one.plan.exits), one.stay_ratio))
    return (winner, *(one for one in ordered if one is not winner))


def warn_of_staying(winner: Contender, allowance: float | None) -> str | None:
    """Returns what to say when a batch that nobody leaves was measured to take more than the search had estimated."""
    if allowance is None or winner.stay_ratio <= 1 + allowance + NOISE:
        return None
    return (
        f"note: a batch that nobody leaves was measured at {winner.stay_ratio:.3f} of the full network, more than "
        f"--stay-allowance {allowance:g} lets the heads add. A smaller allowance or --max-exits makes it less"
    )


@contextmanager
def commit_plan(
    case: PlanningCase, result: SearchResult, samples: Samples, *, clock: Clock = time.perf_counter
) -> Iterator[Commitment]:
    """Assembles and measures the best plans; their bundles exist until the block ends.

    Args:
        case: what is planned for; the run's folder takes the temporary bundles, its engine cache the engines.
        result: what the search found.
        samples: those of the calibrate part are drawn from for the measurement.
        clock: seconds, for the timing of stages and the budget of the measurement.

    Raises:
        ArtifactError: the run's folder cannot be written; nothing is left behind.
    """
    config = case.config
    plans = pick_contenders(result, config.measure.contenders, config.objective)
    allowed = {one.figures.chosen for one in result.considered if one.allowed}
    with _scratch_folder(case.run.root) as scratch:
        say(f"merging and timing the stages of {len(plans)} plans")
        stages = merge_stages(case.model, plans, scratch / "stages")
        itm = time_graphs(
            stage_graphs(case.model, stages), case.model.spec, case.run.engines, config.timing,
            backend=config.backend, threads=config.threads, profiles=config.profiles, clock=clock,
        )  # fmt: skip
        priced = _price_fitting(case, plans, stages, itm)
        certificates = {one.figures.chosen: one.certificate for one in result.considered}
        bundles = _assemble_all(case, scratch, priced, stages, itm, certificates)
        say(f"measuring {len(priced)} plans end to end")
        rows, load = samples.indices_of("calibrate"), config.load or Load.of(config.batch_size)
        drawn = draw_batches(rows, load=load, count=config.measure.queries)
        batches = [as_batch(samples.inputs(indices)) for indices in drawn]
        with ExitStack() as opened:
            serves = [_open_serve(bundle, opened) for _, bundle in bundles]
            measured, rounds = measure_plans(
                serves,
                batches,
                config.measure,
                reference=[one.figures.chosen for one in priced].index(NO_EXITS),
                clock=clock,
            )
        contenders = [
            Contender(
                figures=one.figures, plan=plan, bundle=bundle, measured_mean_ms=mean, measured_batch_ms=whole,
                measured_p99_ms=p99, stay_ratio=stay,
                allowed=one.figures.chosen in allowed,
            )
            for one, (plan, bundle), (mean, whole, p99, stay) in zip(priced, bundles, measured.tolist(), strict=True)
        ]  # fmt: skip
        ranked = rank_contenders(contenders, config.objective)
        if (warning := warn_of_staying(ranked[0], config.tail.stay_allowance)) is not None:
            say(warning)
        yield Commitment(contenders=ranked, rounds=rounds, itm=itm)


@contextmanager
def _scratch_folder(root: Path) -> Iterator[Path]:
    """A hidden folder with the name of an unfinished artifact, so that what a killed process leaves is cleared."""
    folder = root / f".contenders.new-{os.getpid()}-{secrets.token_hex(4)}"
    recover_artifact(root / "contenders")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise ArtifactError(
            f"cannot assemble plans in {folder}: {error.strerror or error}. Free some space or fix the permissions, "
            "then run the command again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def price_plan(
    trace: Trace, chosen: ChosenExits, itm: InferenceTimeMatrix, *, batch_size: int, load: Load | None = None,
    sizes: Sizes | None = None,
) -> PlanFigures:  # fmt: skip
    """Evaluates a plan with the measured times of its own stages; ``itm`` holds those of the plan without exits too."""
    load = load or Load.of(batch_size)
    full = measured_stage_costs(itm, (), batch_size=batch_size)
    costs = measured_stage_costs(itm, chosen.cuts, batch_size=batch_size, sizes=sizes)
    return evaluate_plan(trace, chosen, costs, full_ms=price_staying(full, load), load=load, percentile=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Priced:
    """A plan priced from the times of its stages, with the batch sizes that they keep engines for."""

    figures: PlanFigures
    sizes: Sizes


def _price_fitting(
    case: PlanningCase, plans: Sequence[ChosenExits], stages: Mapping[StageBounds, MergedStage],
    itm: InferenceTimeMatrix,
) -> list[_Priced]:  # fmt: skip
    """Prices the plans that are within the limits on engines, leaving out those that are not."""
    config, priced = case.config, []
    load = config.load or Load.of(config.batch_size)
    for plan in plans:
        try:
            sizes = choose_sizes(plan, evaluate_exits(case.trace, plan), stages, itm, config, case.run.engines)
        except UsageError as error:
            if not plan.cuts:
                raise
            say(f"left out: {error}")
            continue
        figures = price_plan(case.trace, plan, itm, batch_size=config.batch_size, load=load, sizes=sizes)
        priced.append(_Priced(figures=figures, sizes=sizes))
    return priced


def describe_plan(figures: PlanFigures, case: PlanningCase, certificate: Certificate | None = None) -> ExitPlan:
    """Returns the exit plan for a choice of exits; ``certificate``: what is guaranteed of it."""
    config = case.config
    return ExitPlan(
        model_digest=case.model.digest,
        trace_digest=case.trace_digest,
        search=config.search,
        tolerance=config.tolerance,
        delta=None if certificate is None else certificate.delta,
        batch_size=config.batch_size,
        backend=config.backend,
        threads=config.threads,
        exits=figures.planned_exits(),
        full_metric=case.trace.full_metric,
        predicted_metric=figures.outcome.metric,
        predicted=figures.predicted_latency(),
        reference=describe_reference(case.trace, figures.chosen),
        certificate=certificate,
        objective=config.objective,
        load={} if config.load is None else config.load.to_plain(),
        risk=config.certify.risk,
    )


def _assemble_all(
    case: PlanningCase, scratch: Path, priced: Sequence[_Priced], stages: Mapping[StageBounds, MergedStage],
    itm: InferenceTimeMatrix, certificates: Mapping[ChosenExits, Certificate | None],
) -> list[tuple[ExitPlan, Path]]:  # fmt: skip
    inputs = {"model": case.model.digest, "trace": case.trace_digest}
    made = []
    for index, one in enumerate(priced):
        plan = describe_plan(one.figures, case, certificates.get(one.figures.chosen))
        bundle = scratch / f"plan_{index:02d}"
        assemble_bundle(
            bundle, model=case.model, plan=plan, stages=stages, itm=itm, cache=case.run.engines, inputs=inputs,
            sizes=one.sizes, profiles=case.config.profiles,
        )  # fmt: skip
        made.append((plan, bundle))
    return made


def _open_serve(bundle: Path, opened: ExitStack) -> tuple[Serve, Serve]:
    from runtime import Runtime
    from runtime.loading import open_bundle, without_leaving

    found = open_bundle(bundle)

    def serve(spec: BundleSpec) -> Serve:
        runtime = opened.enter_context(Runtime(spec, found.engine_sets, found.device, drift=None))
        return lambda batch: runtime.run(batch).latency_ms

    return serve(found.spec), serve(without_leaving(found.spec))


def draw_batches(queries: np.ndarray, *, load: Load, count: int, seed: int = 0) -> list[np.ndarray]:
    """Returns batches of about ``count`` queries in all, in random order, sizes in proportion to the load.

    ``queries`` are (N, ...) rows, or their indices.

    Every query comes once at most, so that fewer queries make fewer batches; where they do not fill a single one of
    each size, they are repeated.
    """
    order = np.random.default_rng(seed).permutation(len(queries))
    mean_size = float(np.dot(load.batch_sizes, load.shares))
    batches = min(-(-count // mean_size), len(queries) // mean_size)
    sizes = [size for size, share in zip(load.batch_sizes, load.shares, strict=True)
             for _ in range(max(1, int(batches * share + 1e-9)))]  # fmt: skip
    ends = np.cumsum(sizes)
    rows = np.resize(order, ends[-1])
    return [queries[rows[end - size : end]] for end, size in zip(ends, sizes, strict=True)]


def measure_plans(
    serves: Sequence[tuple[Serve, Serve]], batches: Sequence[Batch], config: MeasureConfig,
    *, reference: int, clock: Clock,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Runs the same batches through all plans in turns.

    Args:
        serves: per plan what answers a batch and returns the latency of each query, (B,) milliseconds; and the same
            with thresholds that nobody reaches.
        batches: what to answer.
        config: rounds and budget.
        reference: the plan without exits.
        clock: seconds, for the budget.

    Returns:
        (plans, 4) float64, from the medians over the rounds: mean latency of a query, time of the whole batch in the
        mean over the batches, the latency that 99 % of the queries do not exceed; and the time of a batch that nobody
        leaves, of the reference's on the same batch in the same round. And how many rounds there were.
    """
    for serve, stay in serves:
        serve(batches[0])
        stay(batches[0])
    rounds: list[np.ndarray] = []
    stays: list[np.ndarray] = []
    sizes: list[int] = []
    began = clock()
    for _ in track(range(config.rounds), description="measuring plans", total=config.rounds):
        if rounds and clock() - began > config.budget_s:
            break
        latencies = [[serve(batch) for serve, _ in serves] for batch in batches]
        sizes = [len(by_plan[0]) for by_plan in latencies]
        rounds.append(np.concatenate(latencies, axis=1))
        for batch in batches[:_STAY_BATCHES]:
            hard = np.array([stay(batch).max() for _, stay in serves])
            stays.append(hard / hard[reference])
    starts = np.cumsum([0, *sizes[:-1]])
    whole = np.median([np.maximum.reduceat(one, starts, axis=1) for one in rounds], axis=0).mean(axis=1)
    means = np.median([np.add.reduceat(one, starts, axis=1) for one in rounds], axis=0).sum(axis=1) / sum(sizes)
    p99 = np.quantile(np.median(rounds, axis=0), TAIL_QUANTILE, axis=1, method="inverted_cdf")
    return np.stack([means, whole, p99, np.median(stays, axis=0)], axis=1), len(rounds)
