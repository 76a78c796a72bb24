"""Single queries: a host against ``Runtime.run`` through a queue, one row at a time, at half of what that can do.

    python -m benchmarks.serving_single --bundle runs/resnet/bundle --json serving_single.json

Requests of one row come at random (Poisson) at half the rate at which ``Runtime.run`` answers them one by one. Both
contenders get the same streams, in turns; the figures are medians over the streams of their mean and p99 latency, and
of the ratios stream by stream. Rows are random numbers, or those of a file of numpy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import Answers, environment_fingerprint
from runtime import AsyncRuntime, Runtime
from runtime.loadtest.client import HostTarget, Played, SlowRuns, Target, play
from runtime.simulate.arrivals import make_arrivals

ROWS = 256
NEVER_S = 1e9  # no answer is too late here


class QueueTarget:
    """``Runtime.run`` in a thread, one request after the other."""

    def __init__(self, served: Runtime, rows: tuple[np.ndarray, ...]) -> None:
        self._served = served
        self._rows = rows
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, query: int) -> tuple[Answers, int]:
        """Answers a query in its turn."""
        batch = tuple(array[query : query + 1] for array in self._rows)
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._served.run, batch)
        outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
        return [np.asarray(output) for output in outputs], int(result.exit_index[0])

    def slow_runs(self) -> SlowRuns:
        """Not known."""
        return SlowRuns()


def make_rows(served: Runtime, file: Path | None) -> tuple[np.ndarray, ...]:
    """Returns ROWS rows for every input of a network."""
    specs = served.spec.inputs
    if file is not None:
        return (np.load(file, allow_pickle=False)[:ROWS],)
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((ROWS, *spec.row_shape)).astype(spec.dtype) for spec in specs)


def one_by_one_per_s(served: Runtime, rows: tuple[np.ndarray, ...]) -> float:
    """Returns the rate at which rows are answered one after the other: by the median over three passes."""
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        for row in range(ROWS):
            served.run(tuple(array[row : row + 1] for array in rows))
        passes.append(ROWS / (time.perf_counter() - started))
    return statistics.median(passes)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plays all streams."""
    with Runtime.load(arguments.bundle, threads=arguments.threads) as served:
        rows = make_rows(served, arguments.rows)
        capacity = one_by_one_per_s(served, rows)
        rate = arguments.load * capacity
        async with AsyncRuntime.load(arguments.bundle, threads=arguments.threads) as host:
            targets: dict[str, Target] = {"host": HostTarget(host, rows), "queue": QueueTarget(served, rows)}
            played: dict[str, list[Played]] = {name: [] for name in targets}
            for turn in range(-1, arguments.streams):  # the first one warms up
                count = max(200, int(rate * arguments.seconds))
                arrivals = make_arrivals("poisson", count, rate, turn + 1)
                queries = np.random.default_rng(turn + 1).integers(len(rows[0]), size=count)
                for name in list(targets)[:: 1 if turn % 2 else -1]:
                    stream = await play(targets[name], arrivals, queries, bound_s=NEVER_S)
                    if turn >= 0:
                        played[name].append(stream)
    figures = {
        name: {
            "mean_ms": [float(stream.latency_s.mean() * 1e3) for stream in streams],
            "p99_ms": [float(np.percentile(stream.latency_s, 99) * 1e3) for stream in streams],
        }
        for name, streams in played.items()
    }
    ratios = {
        kind: [host / queue for host, queue in zip(figures["host"][kind], figures["queue"][kind], strict=True)]
        for kind in ("mean_ms", "p99_ms")
    }
    return {
        "one_by_one_per_s": capacity, "rate_per_s": rate, "streams": arguments.streams, "seconds": arguments.seconds,
        "contenders": figures, "median_ratio": {kind: statistics.median(found) for kind, found in ratios.items()},
        "ratios": ratios, "environment": dict(environment_fingerprint()),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="a .npy file of rows for a network with one input")
    parser.add_argument("--load", type=float, default=0.5, help="of the capacity one by one (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a stream (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=15, help="of each contender (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of each engine (default: as the bundle was timed)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    for name, figures in result["contenders"].items():
        mean, p99 = (statistics.median(figures[kind]) for kind in ("mean_ms", "p99_ms"))
        print(f"{name:6} mean {mean:.3f} ms, p99 {p99:.3f} ms at {result['rate_per_s']:.0f} requests/s")
    print(f"host of queue: mean {result['median_ratio']['mean_ms']:.3f}, p99 {result['median_ratio']['p99_ms']:.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
