"""Contenders of a load test: the full network with dynamic batching, and the bundle under several policies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts import RunFolder, StageSpec, open_model
from engines import EngineSet, plan_covers
from runtime.bench.measuring import check_model, open_full
from runtime.hosting.async_runtime import AsyncRuntime
from runtime.hosting.options import HostOptions, line_covers, read_costs
from runtime.loading import OpenBundle, open_bundle
from runtime.loadtest.client import HostTarget, Target
from runtime.scheduling.decisions import FULL, parse_policy
from runtime.scheduling.tables import StageCosts

ONE_ENGINE, STAGES = "one engine", "stages"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """A host that can be loaded.

    Attributes:
        policy: as its flag has it.
        target: answers.
        runs: ``stages``, or ``one engine``: the whole network without exits; empty: not known.
    """

    policy: str
    target: Target
    runs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostContender(Contender):
    """A host in this process.

    Attributes:
        costs: what its scheduler reckons with.
        threads: of each engine; 0: as many as there are processors.
    """

    costs: StageCosts
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContenderPlan:
    """What is opened.

    Attributes:
        run: holds the full network.
        bundle: its folder.
        queries: one array (N, ...) per input of the network.
        options: of every host, but for the policy.
        threads: of each engine; ``None``: the plan's own.
        overhead_ms: what a stage run costs besides its engines, for the simulation.
    """

    run: RunFolder
    bundle: Path
    queries: Sequence[np.ndarray]
    options: HostOptions
    threads: int | None
    overhead_ms: float


async def open_contender(stack: AsyncExitStack, plan: ContenderPlan, policy: str) -> HostContender:
    """Opens a host, with engines of its own, until the stack closes.

    Args:
        stack: closes it.
        plan: what is opened.
        policy: ``full`` runs the whole network as one engine where its graph computes a confidence, and otherwise the
            bundle's stages with no row leaving.
    """
    opened = open_bundle(plan.bundle, threads=plan.threads, stages_only=True)
    spec, sets, runs = opened.spec, opened.engine_sets, STAGES
    if parse_policy(policy).kind == FULL:
        whole = _open_whole(opened, plan)
        if whole is not None:
            stage, engines = whole
            spec = replace(spec, stages=(stage,), plan=replace(spec.plan, exits=(), reference=None))
            for unused in sets:
                unused.close()
            sets, runs = (engines,), ONE_ENGINE
    host = AsyncRuntime.over(spec, sets, opened.device, replace(plan.options, policy=policy))
    await stack.enter_async_context(host)
    costs = read_costs(spec, line_covers(spec, sets), overhead_ms=plan.overhead_ms)
    threads = spec.threads if plan.threads is None else plan.threads
    target = HostTarget(host, plan.queries)
    return HostContender(policy=policy, target=target, costs=costs, runs=runs, threads=threads)


def _open_whole(opened: OpenBundle, plan: ContenderPlan) -> tuple[StageSpec, EngineSet] | None:
    """Opens the whole network as the only stage; ``None`` where its graph computes no confidence.

    Its times, by which covers are chosen and the scheduler plans, are the sums of the stages' times.
    """
    run, spec = plan.run, opened.spec
    model = open_model(run.model, remedy=run.remedy("export"))
    check_model(opened, model)
    if model.spec.full.confidence is None:
        return None
    engine = open_full(run, model, opened, threads=plan.threads)
    sizes = set.intersection(*(set(stage.median_ms) for stage in spec.stages))
    median_ms = {size: sum(stage.median_ms[size] for stage in spec.stages) for size in sizes}
    covers = plan_covers(
        {int(size): ms for size, ms in median_ms.items()}, largest=spec.max_batch_size,
        fixed=bool(engine.key.batch_sizes),
    )  # fmt: skip
    stage = StageSpec(graph=model.spec.full, engine="", threshold=None, median_ms=median_ms)
    return stage, EngineSet(engine, covers)
