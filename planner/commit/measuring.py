"""Measuring plans end to end: assembled bundles answer the same batches in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np

from artifacts import BundleSpec
from artifacts.console import track
from calibration import BatchReader, as_batch
from planner.config import MeasureConfig
from planner.measure.timing import Clock
from planner.predict.percentiles import TAIL_QUANTILE
from planner.predict.traffic import Load

Inputs = Mapping[str, np.ndarray]
Serve = Callable[[Inputs], np.ndarray]  # answers a batch, returns the latency of each query: (B,) milliseconds
_STAY_BATCHES = 4  # per round; such a batch takes as long as the whole network


def open_serve(bundle: Path, opened: ExitStack) -> tuple[Serve, Serve]:
    """Opens a bundle until the stack closes.

    Returns:
        What answers a batch; and the same with thresholds that no row reaches.
    """
    from runtime import Runtime, RuntimeOptions, open_bundle, without_leaving

    found = open_bundle(bundle)

    def serve(spec: BundleSpec) -> Serve:
        runtime = opened.enter_context(Runtime(spec, found.engine_sets, found.device, RuntimeOptions(drift=None)))
        return lambda inputs: runtime.run(as_batch(inputs)).latency_ms

    return serve(found.spec), serve(without_leaving(found.spec))


def draw_batches(queries: np.ndarray, *, load: Load, count: int, seed: int = 0) -> list[np.ndarray]:
    """Returns batches of about ``count`` queries in all, in random order, sizes in proportion to the load.

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
    serves: Sequence[tuple[Serve, Serve]], batches: BatchReader | Sequence[Inputs], config: MeasureConfig,
    *, without_exits: int, clock: Clock,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Runs the same batches through all plans in turns.

    Args:
        serves: per plan what ``open_serve`` returned.
        batches: to answer; gone through once a round, one in memory at a time.
        config: rounds and budget.
        without_exits: the place of the plan without exits.
        clock: seconds, for the budget.

    Returns:
        (plans, 4) float64, from the medians over the rounds: mean latency of a query, time of the whole batch on
        average over the batches, the latency that 99 % of the queries do not exceed; and the time of a batch of which
        no row leaves, of that of the plan without exits on the same batch in the same round. And how many rounds there
        were.
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
        for batch in islice(batches, _STAY_BATCHES):
            hard = np.array([stay(batch).max() for _, stay in serves])
            stays.append(hard / hard[without_exits])
    starts = np.cumsum([0, *sizes[:-1]])
    whole = np.median([np.maximum.reduceat(latency, starts, axis=1) for latency in rounds], axis=0).mean(axis=1)
    sums = np.median([np.add.reduceat(latency, starts, axis=1) for latency in rounds], axis=0).sum(axis=1)
    p99 = np.quantile(np.median(rounds, axis=0), TAIL_QUANTILE, axis=1, method="inverted_cdf")
    return np.stack([sums / sum(sizes), whole, p99, np.median(stays, axis=0)], axis=1), len(rounds)
