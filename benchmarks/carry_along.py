"""Carry-along: the gain if finished rows stayed in the batch wherever shrinking it saves nothing.

    python benchmarks/carry_along.py --run runs/resnet

After an exit the runtime always gathers the survivors. Where engines are bound to batch sizes, the next stage may take
just as long with the finished rows still in place, and the gather would be saved. The gain is computed exactly: a batch
is a Markov decision process whose state is (rows alive, rows that engines run over), and the best policy for the
measured times is compared with always gathering. The whole gather counts as saved, although it includes the decision
which rows leave: the figures are upper bounds. Pure arithmetic on the stages that the last planning run timed.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np

from artifacts import EXIT_PLAN_JSON, ExitPlan, InferenceTimeMatrix, find_run, read_json
from artifacts.console import add_common_arguments, print_table, run_command
from engines import plan_covers
from planner import survivor_transition

STAGES_JSON = "stage_itm.json"  # in the folder of a plan: the times of its merged stages and of the gathers


def expected_mean_ms(
    stages: list[np.ndarray], gathers: list[np.ndarray], going: list[float], *, may_carry: bool
) -> float:
    """Returns the mean latency under the best policy, or when rows are always gathered.

    Args:
        stages: per stage (B + 1,) milliseconds of its engines for 0..B rows.
        gathers: the same for the gather after the stage; none after the last.
        going: per exit the share of the arriving rows that go on.
        may_carry: whether finished rows may stay in the batch.
    """
    batch_size = len(stages[0]) - 1
    waiting = np.outer(np.arange(batch_size + 1), stages[-1])  # [m, r]: further waiting, m alive, r run over
    for cost, gather, share in zip(stages[-2::-1], gathers[::-1], going[::-1], strict=True):
        step = survivor_transition(batch_size, share)
        shrunk, now = np.diag(waiting), np.zeros_like(waiting)
        for rows in range(1, batch_size + 1):
            for run_over in range(rows, batch_size + 1):
                gathered = rows * gather[run_over] + shrunk  # finished rows wait for the gather, too
                best = np.minimum(gathered, waiting[:, run_over]) if may_carry else gathered
                best[0] = gathered[0]  # where no row goes on there is nothing to decide
                now[rows, run_over] = rows * cost[run_over] + step[rows] @ best
        waiting = now
    return float(waiting[batch_size, batch_size]) / batch_size


def compare(itm: InferenceTimeMatrix, plan: ExitPlan, sizes: tuple[int, ...] | None) -> tuple[float, float]:
    """Returns the mean latency with gathering always and with the best policy, for engines of some or any sizes."""
    cuts = [planned.cut for planned in plan.exits]
    stages = []
    for after, until in zip([None, *cuts], [*cuts, None], strict=True):
        times = dict(zip(itm.batch_sizes, itm.row_ms(f"stage_{after or 'input'}..{until or 'output'}"), strict=True))
        own = times if sizes is None else {size: times[size] for size in sizes}
        stages.append(plan_covers(own, largest=plan.batch_size, fixed=sizes is not None).cost_ms)
    rows = np.arange(plan.batch_size + 1)
    gathers = [np.interp(rows, itm.batch_sizes, itm.row_ms(f"gather_{cut}")) for cut in cuts]
    left = np.cumsum([0.0, *(planned.leaving_share for planned in plan.exits)])
    going = [float((1 - after) / (1 - before)) for before, after in itertools.pairwise(left)]
    always, best = (expected_mean_ms(stages, gathers, going, may_carry=flag) for flag in (False, True))
    return always, best


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    run = find_run(arguments.run)
    itm = read_json(run.plan / STAGES_JSON, InferenceTimeMatrix)
    plan = read_json(run.plan / EXIT_PLAN_JSON, ExitPlan)
    largest = itm.batch_sizes[-1]
    choices: list[tuple[int, ...] | None] = [None, itm.batch_sizes]
    choices += [
        tuple(size for size in itm.batch_sizes if size in some) for some in ((1, 8, largest), (largest // 2, largest))
    ]
    choices.append((largest,))
    entries, rows = [], []
    for sizes in choices:
        always, best = compare(itm, plan, sizes)
        entries.append({"sizes": sizes, "always_ms": always, "best_ms": best, "gain": 1 - best / always})
        name = "any" if sizes is None else ",".join(map(str, sizes))
        rows.append([name, f"{always:.3f}", f"{best:.3f}", f"{1 - best / always:.2%}"])
    print_table(
        f"mean latency of the plan with {len(plan.exits)} exits at batch {plan.batch_size}, milliseconds",
        ["engines for batch sizes", "gather always", "best policy", "gain at most"], rows,
        to_stderr=arguments.json == "-",
    )  # fmt: skip
    return {"entries": entries, "exits": [planned.cut for planned in plan.exits]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_common_arguments(parser)
    return run_command(benchmark, parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
