"""Peers: what one would run instead of a bundle, measured beside it on the same held-out queries.

    python -m benchmarks.peers --run runs/resnet --run runs/resnet/variants/openvino-int8 --json peers.json

Runs of images of any size, of masks, of skeletons and of texts; the first run says which queries.

Every contender lives in a process of its own, and only one of them works at a time: idle pools of threads neither spin
nor wait on a core that another one needs. A round asks each of them, in an order drawn anew, to answer all batches.

``whole``    the full network in one call: in ONNX Runtime and in OpenVINO, in float32, in bfloat16 where the processor
             has it, and quantised where a run is; and in torch, as it is and compiled, where the run is of a family.
``by hand``  the plan of each run as a few ONNX Runtime sessions and twenty lines of numpy.
``bundle``   the bundle of each run.
``earlyon``  the plan's exits and heads under the package ``earlyon``, which finds thresholds of its own for the
             tolerance of the plan: a batch leaves as a whole, or row by row.

The latency of a query is the time from the start of its batch until its own answer is there. Reported are medians over
the rounds, relative to the whole network in float32 on ONNX Runtime, and the metric of the answers. Rows of several
lengths are cut to the length that a bundle would choose, for all. Keep the machine quiet while it runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    EngineError,
    Model,
    RunFolder,
    UsageError,
    allowed_processors,
    environment_fingerprint,
    find_task,
    open_model,
)
from artifacts.console import print_table, run_command, say, track
from benchmarks.peer_contenders import BASE, COMPILE_BATCHES, Batch, Contender, list_contenders, open_contender
from calibration import load_run_data
from calibration.tracing.metrics import MetricSum
from engines import fit_length
from runtime.bench.queries import Queries

_TARGETS = "targets of the queries"


def write_queries(model: Model, queries: Queries, folder: Path) -> None:
    """Writes one file per batch: every input, of the rows' length, and the targets."""
    inputs, sequence = model.spec.full.inputs, model.spec.sequence
    for index in range(queries.batch_count):
        batch = queries.inputs(index)
        arrays = [np.asarray(batch[spec.name]) for spec in inputs]
        if sequence is not None:
            arrays = [np.asarray(array) for array in fit_length(arrays, inputs, sequence)]
        named = {spec.name: np.ascontiguousarray(array) for spec, array in zip(inputs, arrays, strict=True)}
        targets = queries.targets(index)
        if targets is None:
            raise UsageError("the data has no labels: nothing tells how precise a peer is; name labelled data, --data")
        np.savez(folder / f"{index:05d}.npz", **named, **{_TARGETS: targets})  # type: ignore[arg-type]


def read_queries(folder: Path) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields the batches with their targets, one in memory at a time."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        targets = found.pop(_TARGETS)
        yield found, targets


def work(contender: Contender, folder: str, task: tuple[str, Mapping[str, Any]], pipe: Connection) -> None:
    """Answers all batches whenever it is asked to, until it is told to stop; the first time it counts the metric."""
    try:
        serve, queries = open_contender(contender), Path(folder)
        warmed: dict[tuple[Any, ...], int] = {}
        for batch, _ in read_queries(queries):
            shape = tuple(array.shape for array in batch.values())
            if warmed.setdefault(shape, 0) < COMPILE_BATCHES:
                warmed[shape] += 1
                serve(batch)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is the reason why it has no row
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    metric: float | None = None
    while pipe.recv() == "go":
        counted, taken, whole_ms = MetricSum(find_task(*task)), [], []
        for batch, targets in read_queries(queries):
            start = time.perf_counter()
            answers, latency_ms = serve(batch)
            whole_ms.append((time.perf_counter() - start) * 1e3)
            taken.append(latency_ms)
            if metric is None:
                counted.add(answers, targets)
        metric = counted.value if metric is None else metric
        pipe.send((float(np.concatenate(taken).mean()), float(np.mean(whole_ms)), metric))


def measure(
    contenders: Sequence[Contender], folder: Path, task: tuple[str, Mapping[str, Any]], *, rounds: int, seed: int
) -> tuple[dict[str, list[tuple[float, float, float]]], dict[str, str]]:
    """Lets every contender answer in each round.

    Returns:
        Contender -> rounds of (mean latency, batch time, metric); and contender -> why it cannot be opened.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes, failed = {}, [], {}
    for contender in contenders:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(contender, str(folder), task, there), daemon=True)
        process.start()
        say(f"opening {contender.name}")
        reason = here.recv()
        processes.append(process)
        if reason:
            failed[contender.name] = reason
        else:
            pipes[contender.name] = here
    random = np.random.default_rng(seed)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pipes}
    for _ in track(range(rounds), description="measuring", total=rounds):
        for name in random.permutation(list(pipes)).tolist():
            pipes[name].send("go")
            taken[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send("stop")
    for process in processes:
        process.join(10)
    return taken, failed


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything, prints the table and returns the result for ``--json``.

    Raises:
        UsageError: the first run's data has no test part or no labels.
        EngineError: not even the network on ONNX Runtime could be measured.
    """
    runs = [RunFolder(root=root) for root in arguments.run]
    model = open_model(runs[0].model, remedy=runs[0].remedy("export"))
    task = (model.spec.task, model.spec.settings)
    queries = Queries(
        load_run_data(runs[0], arguments.data), batch_size=arguments.batch_size, count=arguments.samples,
        seed=arguments.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pame-peers-") as scratch:
        folder = Path(scratch) / "queries"
        folder.mkdir()
        write_queries(model, queries, folder)
        contenders, left_out = list_contenders(runs, Path(scratch), arguments.threads)
        taken, failed = measure(contenders, folder, task, rounds=arguments.rounds, seed=arguments.seed)
    if BASE not in taken:
        raise EngineError(f"{BASE} could not be measured: {failed[BASE]}")
    base_mean, base_batch = (float(np.median([item[place] for item in taken[BASE]])) for place in (0, 1))
    found: list[dict[str, Any]] = []
    for name, items in taken.items():
        mean, whole = (float(np.median([item[place] for item in items])) for place in (0, 1))
        found.append({
            "contender": name, "mean_latency_ms": mean, "batch_ms": whole, "mean_latency_ratio": mean / base_mean,
            "batch_ratio": whole / base_batch, "metric": items[0][2],
        })  # fmt: skip
    result = {
        "contenders": sorted(found, key=lambda row: row["mean_latency_ratio"]),
        "left_out": dict([*left_out, *failed.items()]), "metric_name": find_task(*task).metric_name,
        "batch_size": arguments.batch_size, "threads": arguments.threads, "rounds": arguments.rounds,
        "samples": len(queries), "environment": environment_fingerprint(),
    }  # fmt: skip
    show(result)
    return result


def show(result: Mapping[str, Any]) -> None:
    """Prints the table, and what is not in it."""
    print_table(
        f"{result['samples']} test samples in batches of {result['batch_size']}, {result['threads']} threads, "
        f"{result['rounds']} rounds; relative to the {BASE}",
        ["contender", "mean latency", "whole batch", "mean ms", "batch ms", result["metric_name"]],
        [
            (row["contender"], f"{row['mean_latency_ratio']:.3f}", f"{row['batch_ratio']:.3f}",
             f"{row['mean_latency_ms']:.3f}", f"{row['batch_ms']:.3f}", f"{row['metric']:.4f}")
            for row in result["contenders"]
        ],
    )  # fmt: skip
    for name, reason in result["left_out"].items():
        say(f"left out: {name}: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Measure a bundle against what one would run instead."
    )
    parser.add_argument("--run", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--data", help="as for runtime.bench (default: what the first run was calibrated on)")
    parser.add_argument("--samples", type=int, help="of the test part (default: all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=allowed_processors())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the result there; - for stdout")
    parser.add_argument("-v", "--verbose", action="store_true")
    return run_command(compare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
