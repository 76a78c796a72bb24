"""Cost of the scheduler: microseconds of ``next`` and ``finished`` per stage run, with many rows waiting.

    python -m benchmarks.scheduling_cost [--stages 5] [--waiting 128] [--batch-size 32] [--json FILE]

Nothing else happens between the events, so caches are warm; a host pays more. Each policy takes turns, and the figure
is the median over the turns of the mean cost of a run in a turn. Whenever a run ends, as many one-row requests come as
were answered, so the number of waiting rows stays; the cost of ``submit`` is given apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from artifacts import environment_fingerprint
from runtime.scheduling.decisions import Admitted, Run, SchedulerConfig, parse_policy
from runtime.scheduling.machine import Scheduler
from runtime.scheduling.tables import StageCosts

POLICIES = ("full", "chain", "pooled", "auto")
TURNS, RUNS = 15, 300


def measure_turn(policy: str, stages: int, waiting: int, batch_size: int, seed: int) -> tuple[float, float]:
    """Returns microseconds per run, and per ``submit``."""
    table = [0.0, *(0.0009 + 0.00025 * count / batch_size for count in range(1, batch_size + 1))]
    costs = StageCosts([table] * stages, [0.7] * (stages - 1) + [0.0])
    config = SchedulerConfig(policy=parse_policy(policy), max_waiting_rows=waiting, slo_s=1.0)
    scheduler, random, now, ticket = Scheduler(costs, config), Random(seed), 0.0, 0  # noqa: S311
    scheduling_s = submitting_s = 0.0
    submits = 0
    for turn in range(RUNS + 50):
        if turn == 50:
            scheduling_s = submitting_s = 0.0
            submits = 0
        started = perf_counter()
        while isinstance(scheduler.submit(ticket, 1, now + 10, 0, now), Admitted):
            ticket += 1
            submits += 1
        submitting_s += perf_counter() - started
        ticket += 1
        started = perf_counter()
        scheduler.expire(now)
        run = scheduler.next(now)
        scheduling_s += perf_counter() - started
        assert isinstance(run, Run)
        last = run.stage == stages - 1
        left = [place for place in range(len(run.rows)) if last or (run.may_leave and random.random() < 0.3)]
        now += run.expected_s
        started = perf_counter()
        scheduler.finished(run, left, now)
        scheduling_s += perf_counter() - started
    return scheduling_s / RUNS * 1e6, submitting_s / max(1, submits) * 1e6


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--waiting", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    found: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    for turn in range(TURNS):
        for policy in POLICIES:
            figures = measure_turn(policy, arguments.stages, arguments.waiting, arguments.batch_size, turn)
            found[policy].append(figures)
    result: dict[str, Any] = {
        "stages": arguments.stages, "waiting": arguments.waiting, "batch_size": arguments.batch_size,
        "run_us": {policy: statistics.median(run for run, _ in turns) for policy, turns in found.items()},
        "submit_us": {policy: statistics.median(submit for _, submit in turns) for policy, turns in found.items()},
        "environment": environment_fingerprint(),
    }  # fmt: skip
    for policy in POLICIES:
        print(
            f"{policy:8} {result['run_us'][policy]:6.1f} us per run  {result['submit_us'][policy]:6.1f} us per submit"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
