"""Engine sizes: the batch sizes that a plan's bundle holds engines for, where engines are bound to sizes.

Every size was built and timed for every stage. ``planner.commit.buckets`` says which of them a plan keeps under its
limits; the plan is then priced from these alone, and its bundle holds these alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from artifacts import InferenceTimeMatrix, UsageError, read_manifest
from engines import BuildOptions, ensure_engine
from planner.commit.buckets import StageDemand, plan_buckets, weigh_rows
from planner.commit.stages import StageBounds, TimedStages, stage_bounds
from planner.config import PlanConfig
from planner.predict.costs import stage_row
from planner.predict.replay import Exits, Outcome
from planner.predict.traffic import Load

Sizes = Mapping[StageBounds, tuple[int, ...]]


def check_limits(config: PlanConfig, itm: InferenceTimeMatrix) -> None:
    """Refuses limits on engines where one engine per stage takes any batch size."""
    if not itm.fixed and (config.max_engines is not None or config.memory_mb is not None):
        raise UsageError(
            f"--max-engines, --memory-mb: {config.backend} has one engine per stage, which takes any batch size; "
            "leave them out"
        )


def choose_sizes(exits: Exits, outcome: Outcome, stages: TimedStages, config: PlanConfig) -> Sizes:
    """Returns the batch sizes of every stage of a plan under the limits of the config.

    Args:
        exits: of the plan.
        outcome: the shares of the samples that enter its stages.
        stages: among them those of the plan; with ``memory_mb`` every stage is built for every size by itself, to see
            how large that engine is.
        config: limits, objective and load.

    Raises:
        UsageError: the plan has more stages than the limits allow an engine each.
    """
    all_bounds, itm = stage_bounds(exits.cuts), stages.itm
    if not itm.fixed or (config.max_engines is None and config.memory_mb is None):
        return dict.fromkeys(all_bounds, itm.batch_sizes)
    load = config.load or Load.of(config.batch_size)
    demands = [
        StageDemand(
            weights=weigh_rows(share, load, config.objective),
            times_ms=dict(zip(itm.batch_sizes, itm.row_ms(stage_row(*bounds)), strict=True)),
            memory_mb={} if config.memory_mb is None else _measure_engines(stages, bounds, config.backend),
        )
        for bounds, share in zip(all_bounds, outcome.survival, strict=True)
    ]
    found = plan_buckets(demands, max_engines=config.max_engines, memory_mb=config.memory_mb)
    return dict(zip(all_bounds, found.sizes, strict=True))


def _measure_engines(stages: TimedStages, bounds: StageBounds, backend: str) -> dict[int, float]:
    """Returns the megabytes of the files of an engine for each batch size alone; what runs needs comes on top."""
    stage, found = stages.merged[bounds], {}
    for size in stages.itm.batch_sizes:
        options = BuildOptions(max_batch_size=size, batch_sizes=(size,))
        folder = ensure_engine(stage.onnx, stage.graph, stages.cache, backend=backend, options=options)
        found[size] = sum(entry.size for entry in read_manifest(folder).files) / 1e6
    return found
