"""Cost of planning, by candidates and samples, and quality of the joint search's answers.

    python benchmarks/planning_cost.py --json planning_cost.json
    python benchmarks/planning_cost.py --run runs/resnet          # the trace and the times of a run as well
    python benchmarks/planning_cost.py --certified-only --candidates 12 --samples 10000 1000000

Synthetic traces and times: seeded, one thread, no engine and no file involved. Per size it times the greedy search
(``greedy``: nothing computed before, so with the prices of the stages and the grids), the joint search (``joint``, the
greedy one included, with the prices from before), the joint search for ten tolerances at once (``ladder``), and
everything that ``python -m planner`` computes between the measured times and the contenders that it measures
(``certified``, nothing computed before: the joint search on the whole trace, the plans for several tolerances on the
half for tuning, the tests on the other half, the greedy baseline likewise). The sizes take turns round by round; it
reports medians over the rounds and interquartile ranges, in processor time of all threads, which other work on the
machine disturbs least; linear algebra is held to one thread.

Then the joint search is held against every plan there is on small random traces: every threshold of every subset of
exits, by evaluating plan after plan and by complete tables. On larger traces it is compared with the greedy search, and
with an exhaustive search of all subsets of up to three exits over fine thresholds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    InferenceTimeMatrix,
    Trace,
    environment_fingerprint,
    find_run,
)
from artifacts.console import add_common_arguments, print_table, run_command, track
from planner import (
    NO_EXITS,
    Exits,
    KeptGrids,
    NetworkCosts,
    PlanConfig,
    SearchProblem,
    SearchResult,
    SearchRules,
    SlowBatchRule,
    evaluate_plan,
    plan_greedy,
    plan_joint,
    threshold_grid,
)
from planner.predict.costs import gather_row, head_row, segment_row
from planner.predict.objectives import BATCH, MEAN, OBJECTIVES, objective_ms
from planner.search.level_tables import make_table, spread_levels
from planner.search.refine import pick_combinations
from planner.workflow.inputs import read_inputs
from planner.workflow.searching import make_problem, search_plans

TRACE_NPZ = "trace.npz"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PARTS = ("greedy", "joint", "ladder", "certified")
CANDIDATES = (4, 8, 12, 16)
SAMPLES = (1_000, 10_000, 100_000)
SIZES = (1, 2, 4, 8, 12, 16, 24, 32)
TOLERANCE = 0.01
LADDER = tuple(TOLERANCE * step / 6 for step in range(1, 11))
COMPARED = (0.002, 0.005, 0.01, 0.02, 0.05)
FINE = 1_000_000  # combinations per subset in the exhaustive search
TINY, SMALL = range(2, 8), (20, 50, 100)  # samples of the traces on which every plan is tried
BRUTE_TOLERANCES = (0.0, 0.01, 0.05, 0.2)
NO_RULE = SlowBatchRule(share=0.0, stay_allowance=None)


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
        confidence=confidence.astype(np.float32),
        metric=metric.astype(np.float32),
        agreement=agreement,
    )


def make_costs(*, candidates: int, seed: int) -> NetworkCosts:
    """Times of a network of equal segments, nearly linear in the batch; a head takes a hundredth of it."""
    random = np.random.default_rng([seed, candidates])
    n = np.array(SIZES, float)

    def row(ms: float) -> tuple[float, ...]:
        return tuple((ms * (1 + n) * random.uniform(0.98, 1.02, len(n))).tolist())

    medians = {segment_row(i): row(0.4 / (candidates + 1)) for i in range(candidates + 1)}
    medians |= {"final_head": row(0.005), "full": row(0.4)}
    for i in range(candidates):
        medians |= {head_row(f"cut{i:02d}"): row(0.004), gather_row(f"cut{i:02d}"): row(0.001)}
    itm = InferenceTimeMatrix(
        backend="synthetic",
        threads=1,
        batch_sizes=SIZES,
        median_ms=medians,
        fixed=False,
        environment={},
        spread_ms={name: (0.0,) * len(SIZES) for name in medians},
    )
    return NetworkCosts(itm=itm, cuts=tuple(f"cut{i:02d}" for i in range(candidates + 1)), batch_size=SIZES[-1])


def pose(
    trace: Trace,
    costs: NetworkCosts,
    *tolerances: float,
    objective: str = MEAN,
    rule: SlowBatchRule | None = None,
) -> SearchProblem:
    """Returns a search problem with new grids."""
    rules = SearchRules(objective=objective, slow_batches=rule or SlowBatchRule())
    return SearchProblem(trace=trace, costs=costs, tolerances=tolerances, rules=rules)


def time_planning(trace: Trace, *, candidates: int, seed: int) -> tuple[dict[str, float], SearchResult]:
    """Plans with nothing computed before; returns the seconds of each part and the joint search's answer."""
    costs = make_costs(candidates=candidates, seed=seed)
    marks = [time.process_time()]
    plan_greedy(pose(trace, costs, TOLERANCE))
    marks.append(time.process_time())
    (result,) = plan_joint(pose(trace, costs, TOLERANCE))
    marks.append(time.process_time())
    plan_joint(pose(trace, costs, *LADDER))
    marks.append(time.process_time())
    plan_certified(trace, make_costs(candidates=candidates, seed=seed))
    marks.append(time.process_time())
    return dict(zip(PARTS, np.diff(marks).tolist(), strict=True)), result


def plan_certified(trace: Trace, costs: NetworkCosts) -> None:
    """Works out what ``python -m planner`` does by default, from the measured times to the contenders."""
    config = PlanConfig(tolerance=TOLERANCE, batch_size=costs.batch_size)
    problem = make_problem(trace, costs, config, KeptGrids(thresholds=threshold_grid()))
    search_plans(problem, config.search, config.certify, lambda _: None)


def compare_with_all(*, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Compares the joint search with every plan there is, on small random traces; any batch may be slow.

    Returns:
        One entry per objective and number of samples: of how many cases how many had the least time of all plans, and
        the worst ratio to it.
    """
    groups: list[tuple[str, str, Sequence[int]]] = [(objective, "evaluation", TINY) for objective in OBJECTIVES]
    groups += [(objective, "tables", (samples,)) for objective in (MEAN, BATCH) for samples in SMALL]
    entries = []
    for objective, way, samples in groups:
        ratios = []
        for turn in track(range(rounds), description="trying every plan"):
            count, exits = samples[turn % len(samples)], 1 + turn % 3 if way == "evaluation" else 3
            trace = _round(make_trace(candidates=exits, samples=count, seed=seed + turn), turn)
            if trace.full_metric == 0:
                continue
            costs, tolerance = make_costs(candidates=exits, seed=seed + turn), BRUTE_TOLERANCES[turn // 3 % 4]
            best = plan_joint(pose(trace, costs, tolerance, objective=objective, rule=NO_RULE))[0].best
            try_all = evaluate_all if way == "evaluation" else tabulate_all
            ratios.append(objective_ms(best.times, objective) / try_all(trace, costs, tolerance, objective))
        entries.append(
            {
                "objective": objective,
                "way": way,
                "samples": [min(samples), max(samples)],
                "cases": len(ratios),
                "optimal": int((np.array(ratios) <= 1 + 1e-9).sum()),
                "worst_ratio": max(ratios),
            }
        )
    return entries


def _round(trace: Trace, turn: int) -> Trace:
    """Makes many confidences equal in every second trace."""
    return trace if turn % 2 else replace(trace, confidence=(trace.confidence * 6).round() / np.float32(6))


def every_plan(trace: Trace) -> Iterator[Exits]:
    levels = [np.unique(row).tolist() for row in trace.confidence[:-1]]
    for size in range(len(trace.exits) + 1):
        for rows in itertools.combinations(range(len(trace.exits)), size):
            for thresholds in itertools.product(*(levels[row] for row in rows)):
                yield Exits(cuts=tuple(trace.exits[row] for row in rows), thresholds=thresholds)


def evaluate_all(trace: Trace, costs: NetworkCosts, tolerance: float, objective: str) -> float:
    """Returns the least time of all plans that keep the tolerance, evaluated one by one."""
    least = np.inf
    for chosen in every_plan(trace):
        figures = evaluate_plan(
            trace,
            chosen,
            costs.plan_costs(chosen.cuts),
            full_ms=costs.full_ms,
            percentile=objective not in (MEAN, BATCH),
        )
        if figures.outcome.metric >= trace.full_metric * (1 - tolerance) - 1e-9:
            least = min(least, objective_ms(figures.times, objective))
    return float(least)


def tabulate_all(trace: Trace, costs: NetworkCosts, tolerance: float, objective: str) -> float:
    """Returns the same by tables of all combinations of all thresholds."""
    problem = pose(trace, costs, objective=objective, rule=NO_RULE)
    budget = trace.full_metric * trace.sample_count * tolerance + 1e-6
    none = evaluate_plan(trace, NO_EXITS, costs.plan_costs(()), full_ms=costs.full_ms)
    least = objective_ms(none.times, objective)
    for size in range(1, len(trace.exits) + 1):
        for rows in itertools.combinations(range(len(trace.exits)), size):
            levels = [np.arange(len(problem.ranked.values[row])) for row in rows]
            (found,) = pick_combinations(problem, make_table(problem.ranked, rows, levels), [budget])
            least = least if found is None else min(least, found.price_ms)
    return least


def compare_searches(name: str, trace: Trace, costs: NetworkCosts, rule: SlowBatchRule) -> list[dict[str, Any]]:
    """Plans by both searches and exhaustively for several tolerances; times in milliseconds of the mean query."""
    exhaustive = search_exhaustively(trace, costs, COMPARED, rule)
    entries = []
    for tolerance, fine_ms in zip(COMPARED, exhaustive, strict=True):
        greedy, joint = (
            search(pose(trace, costs, tolerance, rule=rule))[0].best for search in (plan_greedy, plan_joint)
        )
        entries.append(
            {
                "trace": name,
                "tolerance": tolerance,
                "full_ms": costs.full_ms,
                "greedy_ms": greedy.times.mean_ms,
                "joint_ms": joint.times.mean_ms,
                "exhaustive_ms": fine_ms,
                "greedy_exits": list(greedy.exits.cuts),
                "joint_exits": list(joint.exits.cuts),
            }
        )
    return entries


def search_exhaustively(
    trace: Trace, costs: NetworkCosts, tolerances: Sequence[float], rule: SlowBatchRule
) -> list[float]:
    """Returns the best of all subsets of up to three exits, over up to a million combinations of thresholds each."""
    problem = pose(trace, costs, rule=rule)
    budgets = [trace.full_metric * trace.sample_count * tolerance + 1e-6 for tolerance in tolerances]
    best = [costs.full_ms] * len(budgets)
    for size in (1, 2, 3):
        levels = [spread_levels(ranks, int(FINE ** (1 / size) + 1e-9)) for ranks in problem.ranked.ranks]
        for rows in itertools.combinations(range(len(trace.exits)), size):
            if not problem.allows(rows) or problem.prices.first_stage_ms(rows[0]) >= max(best):
                continue
            table = make_table(problem.ranked, rows, [levels[row] for row in rows])
            for position, found in enumerate(pick_combinations(problem, table, budgets)):
                if found is not None:
                    best[position] = min(best[position], found.price_ms)
    return best


def read_run(root: Path) -> tuple[Trace, NetworkCosts]:
    """Returns the trace and the times of a run that was planned for."""
    inputs = read_inputs(find_run(root))
    return inputs.trace, inputs.costs(batch_size=inputs.itm.batch_sizes[-1])


def measure(*, candidates: Sequence[int], samples: Sequence[int], rounds: int, seed: int) -> list[dict[str, Any]]:
    """Times every size once per round, in turns."""
    sizes = [(count, length) for count in candidates for length in samples]
    traces = {size: make_trace(candidates=size[0], samples=size[1], seed=seed) for size in sizes}
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {size: [] for size in sizes}
    exits: dict[tuple[int, int], int] = {}
    for size in track([size for _ in range(rounds + 1) for size in sizes], description="planning"):
        found, result = time_planning(traces[size], candidates=size[0], seed=seed)
        seconds[size].append(found)
        exits[size] = len(result.best.exits.cuts)
    entries = []
    for (count, length), found in seconds.items():
        entry: dict[str, Any] = {"candidates": count, "samples": length, "exits": exits[count, length]}
        for part in found[0]:
            low, middle, high = np.percentile([parts[part] for parts in found[1:]], (25, 50, 75)).tolist()
            entry |= {f"{part}_s": middle, f"{part}_spread_s": high - low}
        entries.append(entry)
    return entries


def measure_certified(*, candidates: Sequence[int], samples: Sequence[int], rounds: int, seed: int) -> None:
    """Times what ``python -m planner`` computes, size after size, and prints seconds and the peak of this process."""
    rows = []
    for count, length in itertools.product(candidates, samples):
        trace = make_trace(candidates=count, samples=length, seed=seed)
        seconds: list[float] = []
        for _ in track(range(rounds), description=f"{count} x {length}"):
            started = time.process_time()
            plan_certified(trace, make_costs(candidates=count, seed=seed))
            seconds.append(time.process_time() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append([count, length, f"{np.median(seconds):.2f}", f"{min(seconds):.2f}", f"{peak:.0f}"])
    columns = ["candidates", "samples", "median, s", "least, s", "peak so far, MB"]
    print_table("planning with a certificate, processor time of one thread", columns, rows)


def compare_worlds(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares the searches on synthetic traces, and on the trace and the times of a run where one is named."""
    worlds = {}
    if arguments.run is not None:
        worlds["run"] = *read_run(arguments.run), SlowBatchRule()
        worlds["run, any cost of staying"] = *read_run(arguments.run), SlowBatchRule(stay_allowance=None)
    for count in arguments.candidates:
        trace = make_trace(candidates=count, samples=10_000, seed=arguments.seed)
        costs = make_costs(candidates=count, seed=arguments.seed)
        worlds[f"synthetic, {count} candidates"] = trace, costs, SlowBatchRule()
    return [entry for name, world in worlds.items() for entry in compare_searches(name, *world)]


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables and returns the result for ``--json``."""
    sizes = {name: getattr(arguments, name) for name in ("candidates", "samples", "rounds", "seed")}
    if arguments.certified_only:
        measure_certified(**sizes)
        return {}
    to_stderr = arguments.json == "-"
    brute = compare_with_all(rounds=arguments.cases, seed=arguments.seed)
    print_brute_force(brute, to_stderr=to_stderr)
    entries = measure(**sizes)
    print_costs(entries, to_stderr=to_stderr)
    compared = compare_worlds(arguments)
    print_compared(compared, to_stderr=to_stderr)
    return {
        "brute_force": brute, "entries": entries, "compared": compared, "rounds": arguments.rounds,
        "seed": arguments.seed, "environment": environment_fingerprint(),
    }  # fmt: skip


def print_brute_force(entries: Sequence[Mapping[str, Any]], *, to_stderr: bool) -> None:
    rows = [
        [
            entry["objective"], "-".join(map(str, sorted(set(entry["samples"])))), entry["way"], entry["cases"],
            entry["optimal"], f"{entry['worst_ratio']:.6f}",
        ]
        for entry in entries
    ]  # fmt: skip
    columns = ["objective", "samples", "tried by", "cases", "optimal", "worst ratio"]
    title = "joint search against every plan there is, three exits at most"
    print_table(title, columns, rows, to_stderr=to_stderr)


def print_costs(entries: Sequence[Mapping[str, Any]], *, to_stderr: bool) -> None:
    rows = [
        [entry["candidates"], entry["samples"], entry["exits"], *(f"{entry[f'{part}_s'] * 1e3:.0f}" for part in PARTS)]
        for entry in entries
    ]
    title = f"planning at batch {SIZES[-1]}, milliseconds of processor time"
    print_table(title, ["candidates", "samples", "exits taken", *PARTS], rows, to_stderr=to_stderr)


def print_compared(entries: Sequence[Mapping[str, Any]], *, to_stderr: bool) -> None:
    rows = [
        [
            entry["trace"], entry["tolerance"], f"{entry['full_ms']:.3f}", f"{entry['greedy_ms']:.3f}",
            f"{entry['joint_ms']:.3f}", f"{entry['greedy_ms'] / entry['joint_ms'] - 1:.1%}", len(entry["joint_exits"]),
            f"{entry['exhaustive_ms']:.3f}", f"{entry['joint_ms'] / entry['exhaustive_ms']:.4f}",
        ]
        for entry in entries
    ]  # fmt: skip
    columns = ["trace", "tolerance", "full", "greedy", "joint", "gain", "exits", "up to 3 exits, exhaustive"]
    title = "expected latency of the mean query, milliseconds"
    print_table(title, [*columns, "joint / it"], rows, to_stderr=to_stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common_arguments(parser)
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=60, help="small traces per row on which every plan is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--certified-only", action="store_true", help="time what python -m planner computes, no more")
    arguments = parser.parse_args()
    if not os.environ.items() >= ONE_THREAD.items():  # read when numpy is imported, so start again
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ONE_THREAD})  # noqa: S606
    return run_command(benchmark, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
