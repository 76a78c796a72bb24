"""Overhead of ``Runtime.run``: what a batch costs besides its engines, for one or several source trees in turns.

    python benchmarks/runtime_overhead.py                                        # this tree
    python benchmarks/runtime_overhead.py --tree before=/path/to/other/checkout  # against another one

Each tree serves fake engines in a process of its own. The processes take turns in alternating order (A B, B A ...),
case by case, so that whatever else the machine does hits them alike. Between two engine runs the caches are emptied, as
a real engine does, except in the cases named ``warm``. The figure of a turn is the time of a call minus the time inside
engines, the lowest tenth of its batches (whatever else the machine does only adds to it); that of a case is the median
of its turns, and the ratio of two trees the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
THIS = "this"
LARGEST, WIDTH, CLASSES = 32, 256, 10
CACHE_BYTES = 4 << 20
LEAVING_SHARE = 0.4
WARM_UP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is served.

    Attributes:
        stages: exits and the final head.
        batch_size: rows of each batch.
        warm: leave the caches as they are between engine runs.
        shadow_fraction: of the rows, as for ``Runtime``.
    """

    stages: int
    batch_size: int
    warm: bool = False
    shadow_fraction: float = 0.0

    @property
    def name(self) -> str:
        extra = (" warm" if self.warm else "") + (" shadowed" if self.shadow_fraction else "")
        return f"{self.stages} stages, batch {self.batch_size}{extra}"


CASES = (
    *(Case(stages=stages, batch_size=size) for stages in (1, 2, 3) for size in (1, 8, 32)),
    *(Case(stages=3, batch_size=size, warm=True) for size in (1, 8, 32)),
    Case(stages=3, batch_size=32, shadow_fraction=0.1),
)


# ---------------------------------------------------------------- a worker: one tree in a process of its own


def make_net(case: Case) -> tuple[Any, list[Any]]:
    """Returns a bundle of fake engines, and these: one engine set per stage."""
    from artifacts import BundleSpec, ExitPlan, GraphSpec, PlannedExit, PredictedLatency, StageSpec, TensorSpec
    from engines import EngineSet, FakeEngine, plan_covers

    random = np.random.default_rng(0)
    evicted = np.zeros(CACHE_BYTES // 8)
    x = TensorSpec(name="x", dtype="float32", row_shape=(WIDTH,))
    answer = TensorSpec(name="answer", dtype="float32", row_shape=(CLASSES,))
    confidence = TensorSpec(name="confidence", dtype="float32", row_shape=())
    stages, sets, exits = [], [], []
    for index in range(case.stages):
        last = index == case.stages - 1
        source = x if index == 0 else TensorSpec(name=f"h{index}", dtype="float32", row_shape=(WIDTH,))
        onward = () if last else (TensorSpec(name=f"h{index + 1}", dtype="float32", row_shape=(WIDTH,)),)
        graph = GraphSpec(
            name=f"stage_{index}", file="", inputs=(source,), outputs=(*onward, answer, confidence),
            confidence="confidence", answers=("answer",),
        )  # fmt: skip
        values = {spec.name: random.random((LARGEST, *spec.row_shape), np.float32) for spec in graph.outputs}

        def outputs(inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray] = values) -> Any:
            count = len(next(iter(inputs.values())))
            if not case.warm:
                np.add(evicted, 1.0, out=evicted)
            return {name: value[:count] for name, value in values.items()}

        threshold = None if last else 1 - LEAVING_SHARE
        stages.append(StageSpec(graph=graph, engine="", threshold=threshold, median_ms={}))
        if threshold is not None:
            exits.append(
                PlannedExit(cut=f"h{index}", threshold=threshold, leaving_share=0.3, metric=1.0, arrival_ms=1.0)
            )
        covers = plan_covers({LARGEST: 1.0}, largest=LARGEST, fixed=False)
        sets.append(EngineSet(FakeEngine(graph, max_batch_size=LARGEST, outputs=outputs), covers))
    plan = ExitPlan(
        model_digest="", trace_digest="", search="", tolerance=0.01, delta=None, batch_size=LARGEST, backend="fake",
        threads=1, exits=tuple(exits), full_metric=1.0, predicted_metric=1.0,
        predicted=PredictedLatency(full_ms=1.0, mean_ms=1.0, batch_ms=1.0, oracle_mean_ms=1.0),
    )  # fmt: skip
    spec = BundleSpec(
        name="overhead", task="classification", backend="fake", threads=1, max_batch_size=LARGEST, inputs=(x,),
        outputs=(answer,), stages=tuple(stages), plan=plan,
    )  # fmt: skip
    return spec, sets


def make_run(case: Case) -> Callable[[], float]:
    """Returns what serves one batch and returns its overhead in microseconds."""
    import runtime
    from engines import HostDevice

    spec, sets = make_net(case)
    chosen: dict[str, Any] = {"drift": None, "shadow_fraction": case.shadow_fraction, "shadow_seed": 0}
    if hasattr(runtime, "RuntimeOptions"):
        served = runtime.Runtime(spec, sets, HostDevice(), runtime.RuntimeOptions(**chosen))
    else:  # a tree of release 0.1.0
        served = runtime.Runtime(spec, sets, HostDevice(), **chosen)
    batch = np.random.default_rng(1).random((case.batch_size, WIDTH), np.float32)

    def run() -> float:
        started = perf_counter()
        result = served.run(batch)
        return (perf_counter() - started) * 1e6 - result.engine_ms * 1e3

    return run


def work(batches: int) -> None:
    """Serves the parent: reads the number of a case, writes its overhead in microseconds."""
    runs = [make_run(case) for case in CASES]
    for run in runs:
        for _ in range(WARM_UP):
            run()
    print("ready", flush=True)
    for line in sys.stdin:
        run = runs[int(line)]
        run()
        print(float(np.quantile([run() for _ in range(batches)], 0.1)), flush=True)


# ---------------------------------------------------------------- the parent


class Worker:
    """One tree's process."""

    def __init__(self, tree: Path, batches: int) -> None:
        command = [sys.executable, __file__, "--work", "--batches", str(batches)]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )
        self._read()

    def measure(self, case: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self._process.wait()}")
        return line.strip()

    def close(self) -> None:
        self._process.communicate()


def measure_trees(trees: Mapping[str, Path], *, rounds: int, batches: int) -> dict[str, np.ndarray]:
    """Returns tree -> (rounds, cases) microseconds."""
    workers = {name: Worker(tree, batches) for name, tree in trees.items()}
    found = {name: np.zeros((rounds, len(CASES))) for name in trees}
    for number in range(rounds):
        for case in range(len(CASES)):
            turn = list(workers) if (number + case) % 2 == 0 else list(reversed(workers))
            for name in turn:
                found[name][number, case] = workers[name].measure(case)
    for worker in workers.values():
        worker.close()
    return found


def describe(found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns one object per case."""
    rows = []
    for index, case in enumerate(CASES):
        row: dict[str, Any] = {"case": case.name}
        for name, measured in found.items():
            row[f"{name}_us"] = float(np.median(measured[:, index]))
            row[f"{name}_spread_us"] = float(np.subtract(*np.quantile(measured[:, index], (0.75, 0.25))))
            if name != THIS:
                ratio = found[THIS][:, index] / measured[:, index]
                row[f"ratio_to_{name}"] = float(np.median(ratio))
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=DIR", help="another source tree")
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=100, help="per round and case (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        work(arguments.batches)
        return
    trees = {THIS: ROOT} | {name: Path(folder) for name, folder in (tree.split("=", 1) for tree in arguments.tree)}
    rows = describe(measure_trees(trees, rounds=arguments.rounds, batches=arguments.batches))
    for row in rows:
        print("  ".join(f"{value:8.3f}" if isinstance(value, float) else f"{value:32}" for value in row.values()))
    if arguments.json is not None:
        from artifacts import environment_fingerprint

        result = {"rounds": arguments.rounds, "batches": arguments.batches, "environment": environment_fingerprint()}
        arguments.json.write_text(json.dumps({**result, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
