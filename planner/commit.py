"""From a search's best few plans to the one that is committed: assembled, timed as stages, measured end to end.

A search prices a stage by its parts. Before anything ships, the few best plans and the plan without exits are merged,
compiled and timed as the stages that they are, their predictions are worked out again from those times, and complete
bundles of them answer the same batches in turns. The least measured mean latency wins among those whose batches cost
at most ``1 + stay_allowance`` times the plan without exits when nobody leaves: that is measured as well, since a sum of
engine times does not know what a cut costs. The prediction of the winner goes into its exit plan, and the measurements
of all of them into the record.
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

from artifacts import ArtifactError, BundleSpec, Certificate, ExitPlan, InferenceTimeMatrix, Model, RunFolder, Trace
from artifacts.console import say, track
from artifacts.store import recover_artifact
from engines import HostDevice
from planner.bundle import MergedStage, StageBounds, assemble_bundle, measured_stage_costs, merge_stages, stage_graphs
from planner.config import MeasureConfig, PlanConfig
from planner.evaluate import NO_EXITS, ChosenExits, PlanFigures, evaluate_plan
from planner.greedy import SearchResult
from planner.reference import describe_reference
from planner.timing import Clock, time_graphs

Serve = Callable[[np.ndarray], np.ndarray]
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
        stay_ratio: time of a batch that nobody leaves, of that of the plan without exits.
        allowed: whether ``stay_ratio`` is within the allowance.
    """

    figures: PlanFigures
    plan: ExitPlan
    bundle: Path
    measured_mean_ms: float
    measured_batch_ms: float
    stay_ratio: float
    allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Commitment:
    """The contenders, the best first: that one is committed.

    Attributes:
        contenders: those that are allowed first, in the order of their measured mean latency.
        rounds: how often every batch went through every plan.
        itm: the times of all their stages.
    """

    contenders: tuple[Contender, ...]
    rounds: int
    itm: InferenceTimeMatrix

    @property
    def winner(self) -> Contender:
        return self.contenders[0]


def pick_contenders(result: SearchResult, count: int) -> tuple[ChosenExits, ...]:
    """Returns the ``count`` best allowed plans, the best with fewer exits for each smaller number of them, and the plan
    without exits: each once, best first."""
    allowed = [one.figures.chosen for one in result.considered if one.allowed]
    with_exits = [chosen for chosen in allowed if chosen.cuts]
    best = with_exits[:count]
    fewest = min((len(chosen.cuts) for chosen in best), default=1)
    fewer = [next((one for one in with_exits if len(one.cuts) == exits), NO_EXITS) for exits in range(1, fewest)]
    return tuple(sorted({*best, *fewer, NO_EXITS}, key=allowed.index))


@contextmanager
def commit_plan(
    case: PlanningCase, result: SearchResult, queries: np.ndarray, *, clock: Clock = time.perf_counter
) -> Iterator[Commitment]:
    """Assembles and measures the best plans; their bundles exist until the block ends.

    Args:
        case: what is planned for; the run's folder takes the temporary bundles, its engine cache the engines.
        result: what the search found.
        queries: (N, ...) inputs of the network for the measurement.
        clock: seconds, for the timing of stages and the budget of the measurement.

    Raises:
        ArtifactError: the run's folder cannot be written; nothing is left behind.
    """
    config = case.config
    plans = pick_contenders(result, config.measure.contenders)
    with _scratch_folder(case.run.root) as scratch:
        say(f"merging and timing the stages of {len(plans)} plans")
        stages = merge_stages(case.model, plans, scratch / "stages")
        itm = time_graphs(
            stage_graphs(case.model, stages), case.model.spec, case.run.engines, config.timing,
            backend=config.backend, threads=config.threads, clock=clock,
        )  # fmt: skip
        figures = [price_plan(case.trace, plan, itm, batch_size=config.batch_size) for plan in plans]
        certificates = {one.figures.chosen: one.certificate for one in result.considered}
        bundles = _assemble_all(case, scratch, figures, stages, itm, certificates)
        say(f"measuring {len(plans)} plans end to end")
        count = -(-config.measure.queries // config.batch_size)
        batches = draw_batches(queries, batch_size=config.batch_size, count=count)
        with ExitStack() as opened:
            serves = [_open_serve(bundle, opened) for _, bundle in bundles]
            measured, rounds = measure_plans(
                serves, batches, config.measure, reference=plans.index(NO_EXITS), clock=clock
            )
        allowance = config.tail.stay_allowance
        contenders = [
            Contender(
                figures=one, plan=plan, bundle=bundle, measured_mean_ms=mean, measured_batch_ms=whole, stay_ratio=stay,
                allowed=allowance is None or stay <= 1 + allowance,
            )
            for one, (plan, bundle), (mean, whole, stay) in zip(figures, bundles, measured.tolist(), strict=True)
        ]  # fmt: skip
        ranked = tuple(sorted(contenders, key=lambda one: (not one.allowed, one.measured_mean_ms)))
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


def price_plan(trace: Trace, chosen: ChosenExits, itm: InferenceTimeMatrix, *, batch_size: int) -> PlanFigures:
    """Evaluates a plan with the measured times of its own stages; ``itm`` holds those of the plan without exits too."""
    full = measured_stage_costs(itm, (), batch_size=batch_size)[0]
    costs = measured_stage_costs(itm, chosen.cuts, batch_size=batch_size)
    return evaluate_plan(trace, chosen, costs, full_ms=float(full[batch_size]))


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
    )


def _assemble_all(
    case: PlanningCase, scratch: Path, priced: Sequence[PlanFigures], stages: Mapping[StageBounds, MergedStage],
    itm: InferenceTimeMatrix, certificates: Mapping[ChosenExits, Certificate | None],
) -> list[tuple[ExitPlan, Path]]:  # fmt: skip
    inputs = {"model": case.model.digest, "trace": case.trace_digest}
    made = []
    for index, figures in enumerate(priced):
        plan = describe_plan(figures, case, certificates.get(figures.chosen))
        bundle = scratch / f"plan_{index:02d}"
        assemble_bundle(
            bundle, model=case.model, plan=plan, stages=stages, itm=itm, cache=case.run.engines, inputs=inputs
        )
        made.append((plan, bundle))
    return made


def _open_serve(bundle: Path, opened: ExitStack) -> tuple[Serve, Serve]:
    from runtime import Runtime
    from runtime.loading import open_bundle, without_leaving

    found = open_bundle(bundle)

    def serve(spec: BundleSpec) -> Serve:
        runtime = opened.enter_context(Runtime(spec, found.engine_sets, HostDevice(), drift=None))
        return lambda batch: runtime.run(batch).latency_ms

    return serve(found.spec), serve(without_leaving(found.spec))


def draw_batches(queries: np.ndarray, *, batch_size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Returns up to ``count`` whole batches of queries in random order; a single one is filled up by repetition."""
    order = np.random.default_rng(seed).permutation(len(queries))
    whole = max(1, min(count, len(order) // batch_size))
    return [queries[rows] for rows in np.resize(order, (whole, batch_size))]


def measure_plans(
    serves: Sequence[tuple[Serve, Serve]], batches: Sequence[np.ndarray], config: MeasureConfig,
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
        (plans, 3) float64: mean latency of a query and time of the whole batch, of every batch the median over the
        rounds, in the mean over the batches; and the median time of a batch that nobody leaves, of the reference's on
        the same batch in the same round. And how many rounds there were.
    """
    for serve, stay in serves:
        serve(batches[0])
        stay(batches[0])
    rounds: list[np.ndarray] = []
    stays: list[np.ndarray] = []
    began = clock()
    for _ in track(range(config.rounds), description="measuring plans", total=config.rounds):
        if rounds and clock() - began > config.budget_s:
            break
        times = np.empty((len(serves), len(batches), 2))
        for column, batch in enumerate(batches):
            for row, (serve, _) in enumerate(serves):
                latency = serve(batch)
                times[row, column] = latency.mean(), latency.max()
        rounds.append(times)
        for batch in batches[:_STAY_BATCHES]:
            whole = np.array([stay(batch).max() for _, stay in serves])
            stays.append(whole / whole[reference])
    measured = np.median(np.stack(rounds), axis=0).mean(axis=1)
    return np.column_stack([measured, np.median(stays, axis=0)]), len(rounds)
