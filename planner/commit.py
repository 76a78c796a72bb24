"""From a search's best few plans to the one that is committed: assembled, timed as stages, measured end to end.

A search prices a stage by its parts. Before anything ships, the few best plans and the plan without exits are merged,
compiled and timed as the stages that they are, their predictions are worked out again from those times, and complete
bundles of them answer the same batches in turns. The least measured mean latency wins; the prediction of the winner
goes into its exit plan, and the measurements of all of them into the record.
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

from artifacts import ArtifactError, ExitPlan, InferenceTimeMatrix, Model, RunFolder, Trace
from artifacts.console import say, track
from artifacts.store import recover_artifact
from planner.bundle import MergedStage, StageBounds, assemble_bundle, measured_stage_costs, merge_stages, stage_graphs
from planner.config import MeasureConfig, PlanConfig
from planner.evaluate import NO_EXITS, ChosenExits, PlanFigures, evaluate_plan
from planner.greedy import SearchResult
from planner.timing import Clock, time_graphs

Serve = Callable[[np.ndarray], np.ndarray]


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
    """

    figures: PlanFigures
    plan: ExitPlan
    bundle: Path
    measured_mean_ms: float
    measured_batch_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Commitment:
    """The contenders, the fastest first: that one is committed.

    Attributes:
        contenders: in the order of their measured mean latency.
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
    """Returns the ``count`` best allowed plans and the plan without exits, each once, best first."""
    allowed = [one.figures.chosen for one in result.considered if one.allowed]
    with_exits = [chosen for chosen in allowed if chosen.cuts][:count]
    return tuple(sorted({*with_exits, NO_EXITS}, key=allowed.index))


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
            backend=config.backend, threads=config.threads, profiles=config.profiles, clock=clock,
        )  # fmt: skip
        figures = [price_plan(case.trace, plan, itm, batch_size=config.batch_size) for plan in plans]
        bundles = _assemble_all(case, scratch, figures, stages, itm)
        say(f"measuring {len(plans)} plans end to end")
        count = -(-config.measure.queries // config.batch_size)
        batches = draw_batches(queries, batch_size=config.batch_size, count=count)
        with ExitStack() as opened:
            serves = [_open_serve(bundle, opened) for _, bundle in bundles]
            measured, rounds = measure_plans(serves, batches, config.measure, clock=clock)
        contenders = [
            Contender(
                figures=one, plan=plan, bundle=bundle, measured_mean_ms=float(mean), measured_batch_ms=float(whole)
            )
            for one, (plan, bundle), (mean, whole) in zip(figures, bundles, measured, strict=True)
        ]
        ranked = tuple(sorted(contenders, key=lambda one: one.measured_mean_ms))
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


def describe_plan(figures: PlanFigures, case: PlanningCase) -> ExitPlan:
    """Returns the exit plan for a choice of exits."""
    config = case.config
    return ExitPlan(
        model_digest=case.model.digest,
        trace_digest=case.trace_digest,
        search=config.search,
        tolerance=config.tolerance,
        delta=None,
        batch_size=config.batch_size,
        backend=config.backend,
        threads=config.threads,
        exits=figures.planned_exits(),
        full_metric=case.trace.full_metric,
        predicted_metric=figures.outcome.metric,
        predicted=figures.predicted_latency(),
    )


def _assemble_all(
    case: PlanningCase, scratch: Path, priced: Sequence[PlanFigures], stages: Mapping[StageBounds, MergedStage],
    itm: InferenceTimeMatrix,
) -> list[tuple[ExitPlan, Path]]:  # fmt: skip
    inputs = {"model": case.model.digest, "trace": case.trace_digest}
    made = []
    for index, figures in enumerate(priced):
        plan, bundle = describe_plan(figures, case), scratch / f"plan_{index:02d}"
        assemble_bundle(
            bundle, model=case.model, plan=plan, stages=stages, itm=itm, cache=case.run.engines, inputs=inputs,
            profiles=case.config.profiles,
        )  # fmt: skip
        made.append((plan, bundle))
    return made


def _open_serve(bundle: Path, opened: ExitStack) -> Serve:
    from runtime import Runtime

    runtime = opened.enter_context(Runtime.load(bundle))
    return lambda batch: runtime.run(batch).latency_ms


def draw_batches(queries: np.ndarray, *, batch_size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Returns up to ``count`` whole batches of queries in random order; a single one is filled up by repetition."""
    order = np.random.default_rng(seed).permutation(len(queries))
    whole = max(1, min(count, len(order) // batch_size))
    return [queries[rows] for rows in np.resize(order, (whole, batch_size))]


def measure_plans(
    serves: Sequence[Serve], batches: Sequence[np.ndarray], config: MeasureConfig, *, clock: Clock
) -> tuple[np.ndarray, int]:
    """Runs the same batches through all plans in turns.

    Args:
        serves: per plan what answers a batch and returns the latency of each query, (B,) milliseconds.
        batches: what to answer.
        config: rounds and budget.
        clock: seconds, for the budget.

    Returns:
        (plans, 2) float64: mean latency of a query and time of the whole batch, of every batch the median over the
        rounds, in the mean over the batches; and how many rounds there were.
    """
    for serve in serves:
        serve(batches[0])
    rounds: list[np.ndarray] = []
    began = clock()
    for _ in track(range(config.rounds), description="measuring plans", total=config.rounds):
        if rounds and clock() - began > config.budget_s:
            break
        times = np.empty((len(serves), len(batches), 2))
        for column, batch in enumerate(batches):
            for row, serve in enumerate(serves):
                latency = serve(batch)
                times[row, column] = latency.mean(), latency.max()
        rounds.append(times)
    measured: np.ndarray = np.median(np.stack(rounds), axis=0).mean(axis=1)
    return measured, len(rounds)
