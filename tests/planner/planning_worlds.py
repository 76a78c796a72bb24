"""Small traces and inference time matrices for the planner's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from artifacts import InferenceTimeMatrix, Trace
from planner import (
    Exits,
    KeptGrids,
    NetworkCosts,
    Search,
    SearchedPlan,
    SearchProblem,
    SearchResult,
    SearchRules,
    plan_greedy,
    plan_joint,
    threshold_grid,
)
from planner.predict.costs import gather_row, head_row, segment_row


def make_trace(
    seed: int, *, exits: int = 3, samples: int = 60, levels: int | None = None, graded: bool = False
) -> Trace:
    """A trace whose later exits are surer and better; ``levels`` rounds confidences so that many are equal."""
    random = np.random.default_rng(seed)
    hardness = random.random(samples)
    depth = np.linspace(0.3, 1.0, exits + 1)[:, None]
    confidence = np.clip(1 - hardness + depth - 0.7 + random.normal(0, 0.15, (exits + 1, samples)), 0, 1)
    if levels is not None:
        confidence = np.round(confidence * levels) / levels
    if graded:
        metric = np.clip(1 - hardness * (1.3 - depth) + random.normal(0, 0.05, (exits + 1, samples)), 0, 1)
    else:
        metric = random.random((exits + 1, samples)) < 1 - hardness * (1.4 - depth)
    agreement = metric > 0.5
    agreement[-1] = True
    return Trace(
        exits=tuple(f"cut{i}" for i in range(exits)),
        confidence=confidence.astype(np.float32),
        metric=metric.astype(np.float32),
        agreement=agreement,
    )


def make_itm(
    seed: int,
    *,
    exits: int = 3,
    sizes: tuple[int, ...] = (1, 2, 4, 8),
    head: float = 0.3,
    seam: float = 0.05,
    fixed: bool = False,
) -> InferenceTimeMatrix:
    """Times that grow with the batch, with a fixed part; the network has one cut more than exits."""
    random = np.random.default_rng(seed)
    n = np.array(sizes, float)
    slopes = random.uniform(0.5, 1.5, exits + 1)
    rows = {segment_row(i): seam + 0.2 + slope * n / 4 for i, slope in enumerate(slopes)}
    rows["final_head"] = seam + 0.05 + 0.01 * n
    rows["full"] = sum(rows.values()) - seam * (exits + 1)
    for i in range(exits):
        rows[head_row(f"cut{i}")] = seam + head * (0.3 + n / 8)
        rows[gather_row(f"cut{i}")] = 0.01 + 0.002 * n
    medians = {name: tuple(row.tolist()) for name, row in rows.items()}
    return InferenceTimeMatrix(
        backend="fake 1", threads=1, batch_sizes=sizes, median_ms=medians,
        spread_ms={name: (0.0,) * len(sizes) for name in medians}, fixed=fixed, environment={},
    )  # fmt: skip


def make_costs(seed: int, *, exits: int = 3, batch_size: int = 8, **options: object) -> NetworkCosts:
    sizes = (*(size for size in (1, 2, 4, 8, 16, 32) if size < batch_size), batch_size)
    itm = make_itm(seed, exits=exits, sizes=sizes, **options)
    return NetworkCosts(itm=itm, cuts=tuple(f"cut{i}" for i in range(exits + 1)), batch_size=batch_size)


def make_problem(
    trace: Trace, costs: NetworkCosts, *tolerances: float, grids: KeptGrids | None = None, **rules: object
) -> SearchProblem:
    """The problem of some tolerances, by the fields of ``SearchRules``; new grids unless some are given."""
    grids = grids or KeptGrids(thresholds=threshold_grid())
    return SearchProblem(trace=trace, costs=costs, tolerances=tolerances, rules=SearchRules(**rules), grids=grids)


def search_greedily(trace: Trace, costs: NetworkCosts, *, tolerance: float, **options: object) -> SearchResult:
    """The greedy search at one tolerance; options as for ``make_problem``."""
    (result,) = plan_greedy(make_problem(trace, costs, tolerance, **options))
    return result


def search_jointly(trace: Trace, costs: NetworkCosts, *, tolerance: float, **options: object) -> SearchResult:
    """The joint search at one tolerance; options as for ``make_problem``."""
    (result,) = plan_joint(make_problem(trace, costs, tolerance, **options))
    return result


def search_by(find: Callable[[Trace, Sequence[float]], Sequence[Exits]]) -> Search:
    """A search that answers with given plans, one per tolerance of the trace."""

    def search(problem: SearchProblem) -> tuple[SearchResult, ...]:
        plans = find(problem.trace, problem.tolerances)
        return tuple(SearchResult(considered=(SearchedPlan(priced=problem.price(exits)),)) for exits in plans)

    return search


@st.composite
def traces(draw: st.DrawFn, *, max_exits: int = 4, max_samples: int = 40) -> Trace:
    """Traces of every sort, many with ties, constants or a single sample."""
    exits = draw(st.integers(0, max_exits))
    samples = draw(st.integers(1, max_samples))
    levels, graded = draw(st.sampled_from([None, 1, 2, 20])), draw(st.booleans())
    return make_trace(draw(st.integers(0, 2**16)), exits=exits, samples=samples, levels=levels, graded=graded)
