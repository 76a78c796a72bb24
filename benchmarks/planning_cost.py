"""How the time of planning grows with candidates and samples.

    python benchmarks/planning_cost.py --json planning_cost.json

Synthetic traces and times: seeded, one thread, no engine and no file involved. Per size the greedy search is timed in
three ways: ``first`` with nothing known (stage prices and grids are worked out), ``kept`` for another tolerance with
the prices and the first grid kept from before, and ``grid`` for the first grid alone. The sizes take turns round by
round; reported are medians over the rounds and interquartile ranges, in processor time, which other work on the
machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts import InferenceTimeMatrix, Trace, environment_fingerprint
from artifacts.console import add_common_arguments, print_table, run_command, track
from planner import KeptGrids, NetworkCosts, SearchResult, evaluate_grid, plan_greedy, threshold_grid
from planner.costs import gather_row, head_row, segment_row

CANDIDATES = (4, 8, 12, 16)
SAMPLES = (1_000, 10_000, 100_000)
SIZES = (1, 2, 4, 8, 12, 16, 24, 32)
TOLERANCES = (0.01, 0.02)


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
    """Times of a network of equal segments on a processor: nearly linear in the batch."""
    random = np.random.default_rng([seed, candidates])
    n = np.array(SIZES, float)

    def row(ms: float) -> tuple[float, ...]:
        return tuple((ms * (1 + n) * random.uniform(0.98, 1.02, len(n))).tolist())

    medians = {segment_row(i): row(0.4 / (candidates + 1)) for i in range(candidates + 1)}
    medians |= {"final_head": row(0.005), "full": row(0.4)}
    for i in range(candidates):
        medians |= {head_row(f"cut{i:02d}"): row(0.02), gather_row(f"cut{i:02d}"): row(0.001)}
    itm = InferenceTimeMatrix(
        backend="synthetic", threads=1, batch_sizes=SIZES, median_ms=medians, fixed=False, environment={},
        spread_ms={name: (0.0,) * len(SIZES) for name in medians},
    )  # fmt: skip
    return NetworkCosts(itm=itm, cuts=tuple(f"cut{i:02d}" for i in range(candidates + 1)), batch_size=SIZES[-1])


def time_planning(trace: Trace, *, candidates: int, seed: int) -> tuple[dict[str, float], SearchResult]:
    """Plans twice from nothing known; returns the seconds of each part and the second answer."""
    costs = make_costs(candidates=candidates, seed=seed)
    kept = KeptGrids(thresholds=threshold_grid())
    marks = [time.process_time()]
    plan_greedy(trace, costs, tolerance=TOLERANCES[0], kept=kept)
    marks.append(time.process_time())
    result = plan_greedy(trace, costs, tolerance=TOLERANCES[1], kept=kept)
    marks.append(time.process_time())
    evaluate_grid(trace, kept.thresholds)
    marks.append(time.process_time())
    return dict(zip(("first", "kept", "grid"), np.diff(marks).tolist(), strict=True)), result


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
    entries = measure(
        candidates=arguments.candidates, samples=arguments.samples, rounds=arguments.rounds, seed=arguments.seed
    )
    parts = ("first", "kept", "grid")
    rows = [
        [one["candidates"], one["samples"], one["exits"], *(f"{one[f'{part}_s'] * 1e3:.1f}" for part in parts)]
        for one in entries
    ]
    print_table(
        f"greedy planning at batch {SIZES[-1]}, milliseconds of processor time",
        ["candidates", "samples", "exits taken", "first", "another tolerance", "grid alone"], rows,
        to_stderr=arguments.json == "-",
    )  # fmt: skip
    return {
        "entries": entries,
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
