"""How the time of planning grows with candidates and samples, and what the joint search gains over the greedy one.

    python benchmarks/planning_cost.py --json planning_cost.json
    python benchmarks/planning_cost.py --run runs/resnet          # the trace and the times of a run as well

Synthetic traces and times: seeded, one thread, no engine and no file involved. Per size are timed the greedy search
(``greedy``: with nothing known, stage prices and grids are worked out), the joint search (``joint``, the greedy one
included, prices known), and the joint search for ten tolerances at once (``ladder``), as a certificate asks for it. The
sizes take turns round by round; reported are medians over the rounds and interquartile ranges, in processor time, which
other work on the machine disturbs least. Then both searches are compared on every trace, by expected mean latency and
against an exhaustive search of all subsets of up to three exits over fine thresholds.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    InferenceTimeMatrix,
    Trace,
    environment_fingerprint,
    find_run,
    open_artifact,
    open_model,
    read_json,
)
from artifacts.console import add_common_arguments, print_table, run_command, track
from planner import (
    KeptGrids,
    NetworkCosts,
    SearchResult,
    TailRule,
    plan_greedy,
    plan_joint,
    plan_ladder,
    threshold_grid,
)
from planner.costs import gather_row, head_row, segment_row
from planner.joint import make_case
from planner.objectives import MEAN
from planner.tables import make_table, spread_levels
from planner.timing import ITM_JSON
from planner.zoom import pick_cells

TRACE_NPZ = "trace.npz"
PARTS = ("greedy", "joint", "ladder")
CANDIDATES = (4, 8, 12, 16)
SAMPLES = (1_000, 10_000, 100_000)
SIZES = (1, 2, 4, 8, 12, 16, 24, 32)
TOLERANCE = 0.01
LADDER = tuple(TOLERANCE * step / 6 for step in range(1, 11))
COMPARED = (0.002, 0.005, 0.01, 0.02, 0.05)
FINE = 1_000_000  # combinations per subset in the exhaustive search


def make_trace(*, candidates: int, samples: int, seed: int) -> Trace:
    """A trace whose later exits are surer and better, as those of a trained network are."""
    random = np.random.default_rng([seed, candidates, samples])
    hardness = random.random(samples)
    depth = np.linspace(0.4, 1.0, candidates + 1)[:, None]
    confidence = 1 / (1 + np.exp(-12 * (depth - hardness) + random.normal(0, 1, (candidates + 1, samples))))
    metric = random.random((candidates + 1, samples)) < 1 / (1 + np.exp(-15 * (depth + 0.05 - hardness)))
    agreement = metric == metric[-1]
    return Trace(
        exits=tuple(f"cut{i:02d}" for i in range(candidates)),
        confidence=confidence.astype(np.float32), metric=metric.astype(np.float32), agreement=agreement,
    )  # fmt: skip


def make_costs(*, candidates: int, seed: int) -> NetworkCosts:
    """Times of equal segments on a processor, nearly linear in the batch; a head takes a hundredth of the network."""
    random = np.random.default_rng([seed, candidates])
    n = np.array(SIZES, float)

    def row(ms: float) -> tuple[float, ...]:
        return tuple((ms * (1 + n) * random.uniform(0.98, 1.02, len(n))).tolist())

    medians = {segment_row(i): row(0.4 / (candidates + 1)) for i in range(candidates + 1)}
    medians |= {"final_head": row(0.005), "full": row(0.4)}
    for i in range(candidates):
        medians |= {head_row(f"cut{i:02d}"): row(0.004), gather_row(f"cut{i:02d}"): row(0.001)}
    itm = InferenceTimeMatrix(
        backend="synthetic", threads=1, batch_sizes=SIZES, median_ms=medians, fixed=False, environment={},
        spread_ms={name: (0.0,) * len(SIZES) for name in medians},
    )  # fmt: skip
    return NetworkCosts(itm=itm, cuts=tuple(f"cut{i:02d}" for i in range(candidates + 1)), batch_size=SIZES[-1])


def time_planning(trace: Trace, *, candidates: int, seed: int) -> tuple[dict[str, float], SearchResult]:
    """Plans from nothing known; returns the seconds of each part and the joint search's answer."""
    costs = make_costs(candidates=candidates, seed=seed)
    marks = [time.process_time()]
    plan_greedy(trace, costs, tolerance=TOLERANCE, kept=KeptGrids(thresholds=threshold_grid()))
    marks.append(time.process_time())
    result = plan_joint(trace, costs, tolerance=TOLERANCE)
    marks.append(time.process_time())
    plan_ladder(trace, costs, LADDER)
    marks.append(time.process_time())
    return dict(zip(PARTS, np.diff(marks).tolist(), strict=True)), result


def compare_searches(name: str, trace: Trace, costs: NetworkCosts) -> list[dict[str, Any]]:
    """Plans by both searches and exhaustively for several tolerances; times in milliseconds of the mean query."""
    kept, tail = KeptGrids(thresholds=threshold_grid()), TailRule()
    exhaustive = search_exhaustively(trace, costs, COMPARED, tail)
    entries = []
    for tolerance, fine_ms in zip(COMPARED, exhaustive, strict=True):
        greedy = plan_greedy(trace, costs, tolerance=tolerance, kept=kept, tail=tail).best
        joint = plan_joint(trace, costs, tolerance=tolerance, tail=tail, kept=kept).best
        entries.append(
            {
                "trace": name, "tolerance": tolerance, "full_ms": costs.full_ms, "greedy_ms": greedy.times.mean_ms,
                "joint_ms": joint.times.mean_ms, "exhaustive_ms": fine_ms,
                "greedy_exits": list(greedy.chosen.cuts), "joint_exits": list(joint.chosen.cuts),
            }
        )  # fmt: skip
    return entries


def search_exhaustively(trace: Trace, costs: NetworkCosts, tolerances: Sequence[float], tail: TailRule) -> list[float]:
    """Returns the best of all subsets of up to three exits, over up to a million combinations of thresholds each."""
    case = make_case(trace, costs, MEAN, tail)
    budgets = [trace.full_metric * trace.sample_count * tolerance + 1e-6 for tolerance in tolerances]
    best = [costs.full_ms] * len(budgets)
    for size in (1, 2, 3):
        levels = [spread_levels(ranks, int(FINE ** (1 / size) + 1e-9)) for ranks in case.ranked.ranks]
        for rows in itertools.combinations(range(len(trace.exits)), size):
            if not case.allows(rows) or case.prices.first_stage_ms(rows[0]) >= max(best):
                continue
            table = make_table(case.ranked, rows, [levels[row] for row in rows])
            for position, spot in enumerate(pick_cells(case, table, budgets)):
                if spot is not None:
                    best[position] = min(best[position], spot.price_ms)
    return best


def read_run(root: Path) -> tuple[Trace, NetworkCosts]:
    """Returns the trace and the times of a run that was planned for."""
    run = find_run(root)
    remedy = "python -m planner --tolerance 0.01"
    trace = Trace.load(open_artifact(run.trace, kind="trace", remedy=remedy).path(TRACE_NPZ))
    itm = read_json(open_artifact(run.itm, kind="itm", remedy=remedy).path(ITM_JSON), InferenceTimeMatrix)
    cuts = tuple(cut.name for cut in open_model(run.model, remedy=remedy).spec.cuts)
    return trace, NetworkCosts(itm=itm, cuts=cuts, batch_size=itm.batch_sizes[-1])


def measure(*, candidates: Sequence[int], samples: Sequence[int], rounds: int, seed: int) -> list[dict[str, Any]]:
    """Times every size once per round, in turns."""
    sizes = [(count, length) for count in candidates for length in samples]
    traces = {size: make_trace(candidates=size[0], samples=size[1], seed=seed) for size in sizes}
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {size: [] for size in sizes}
    exits: dict[tuple[int, int], int] = {}
    for size in track([size for _ in range(rounds + 1) for size in sizes], description="planning"):
        found, result = time_planning(traces[size], candidates=size[0], seed=seed)
        seconds[size].append(found)
        exits[size] = len(result.best.chosen.cuts)
    entries = []
    for (count, length), found in seconds.items():
        entry: dict[str, Any] = {"candidates": count, "samples": length, "exits": exits[count, length]}
        for part in found[0]:
            low, middle, high = np.percentile([one[part] for one in found[1:]], (25, 50, 75)).tolist()
            entry |= {f"{part}_s": middle, f"{part}_spread_s": high - low}
        entries.append(entry)
    return entries


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    to_stderr = arguments.json == "-"
    entries = measure(
        candidates=arguments.candidates, samples=arguments.samples, rounds=arguments.rounds, seed=arguments.seed
    )
    rows = [
        [one["candidates"], one["samples"], one["exits"], *(f"{one[f'{part}_s'] * 1e3:.0f}" for part in PARTS)]
        for one in entries
    ]
    print_table(
        f"planning at batch {SIZES[-1]}, milliseconds of processor time",
        ["candidates", "samples", "exits taken", *PARTS], rows, to_stderr=to_stderr,
    )  # fmt: skip
    worlds = {} if arguments.run is None else {"run": read_run(arguments.run)}
    for count in arguments.candidates:
        trace = make_trace(candidates=count, samples=10_000, seed=arguments.seed)
        worlds[f"synthetic, {count} candidates"] = trace, make_costs(candidates=count, seed=arguments.seed)
    compared = [one for name, (trace, costs) in worlds.items() for one in compare_searches(name, trace, costs)]
    print_table(
        "expected latency of the mean query, milliseconds",
        ["trace", "tolerance", "full", "greedy", "joint", "gain", "exits", "up to 3 exits, exhaustive"],
        [
            [
                one["trace"], one["tolerance"], f"{one['full_ms']:.3f}", f"{one['greedy_ms']:.3f}",
                f"{one['joint_ms']:.3f}", f"{one['greedy_ms'] / one['joint_ms'] - 1:.1%}", len(one["joint_exits"]),
                f"{one['exhaustive_ms']:.3f}",
            ]
            for one in compared
        ],
        to_stderr=to_stderr,
    )  # fmt: skip
    return {
        "entries": entries,
        "compared": compared,
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "environment": environment_fingerprint(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common_arguments(parser)
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return run_command(benchmark, parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
