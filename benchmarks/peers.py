"""Peers: what one would run instead of a bundle, measured beside it on the same held-out queries.

    python benchmarks/peers.py --run runs/resnet --run runs/resnet/variants/openvino-int8 --json peers.json

Every contender lives in a process of its own, and only one of them works at a time: idle pools of threads neither spin
nor wait on a core that another one needs. A round asks each of them, in an order drawn anew, to answer all batches.

``whole``    the full network in one call: in ONNX Runtime and in OpenVINO, in float32, in bfloat16 where the processor
             has it, and quantised where a run is.
``by hand``  the plan of each run as a few ONNX Runtime sessions and twenty lines of numpy.
``bundle``   the bundle of each run.

The latency of a query is the time from the start of its batch until its own answer is there. Reported are medians over
the rounds, relative to the whole network in float32 on ONNX Runtime, and the metric of the answers. Keep the machine
quiet while it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    EXIT_PLAN_JSON,
    ExitPlan,
    Model,
    RunFolder,
    allowed_processors,
    environment_fingerprint,
    find_task,
    open_model,
    read_json,
)
from artifacts.console import print_table, say, track
from calibration import load_run_data
from export import merge_stage

BASE = "whole, onnxruntime fp32"
_WARM_UP = 4

Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A batch (B, ...) -> the answers, and the milliseconds until each is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to answer queries.

    Attributes:
        name: in the table.
        kind: ``ort``, ``openvino``, ``by hand`` or ``bundle``.
        files: of graphs, or the folder of a bundle.
        hint: the arithmetic of OpenVINO.
        thresholds: of the exits, of a plan by hand.
        threads: of each engine.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    hint: str = ""
    thresholds: tuple[float, ...] = ()
    threads: int = 1


def open_session(file: str, threads: int) -> Any:
    """Opens a graph in ONNX Runtime with pools that do not spin when they are idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def open_contender(contender: Contender) -> Answer:
    """Opens what a contender needs, in its own process."""
    if contender.kind == "bundle":
        from runtime import Runtime

        runtime = Runtime.load(contender.files[0], threads=contender.threads, drift=None)

        def serve(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            result = runtime.run(batch)
            return np.asarray(result.outputs), result.latency_ms

        return serve
    if contender.kind == "by hand":
        return _by_hand(contender)
    if contender.kind == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(contender.files[0], "CPU", {
            "INFERENCE_PRECISION_HINT": contender.hint, "INFERENCE_NUM_THREADS": contender.threads, "NUM_STREAMS": 1,
        })  # fmt: skip
        request = compiled.create_infer_request()

        def infer(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return _whole(lambda: request.infer([batch])[0], len(batch))

        return infer
    session = open_session(contender.files[0], contender.threads)
    name, answer = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda batch: _whole(lambda: session.run([answer], {name: batch})[0], len(batch))


def _whole(run: Callable[[], np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    start = time.perf_counter()
    answers = np.array(run())
    return answers, np.full(count, (time.perf_counter() - start) * 1e3)


def _by_hand(contender: Contender) -> Answer:
    """Returns the plan as somebody would write it: a session per stage, and numpy in between."""
    sessions = [open_session(file, contender.threads) for file in contender.files]

    def serve(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = time.perf_counter()
        left, features = np.arange(len(batch)), batch
        answers, latency_ms = None, np.zeros(len(batch))
        for place, session in enumerate(sessions):
            outputs = session.run(None, {session.get_inputs()[0].name: features})
            last = place == len(sessions) - 1
            features, (answer, confidence) = (None, outputs) if last else (outputs[0], outputs[1:])
            if answers is None:
                answers = np.empty((len(batch), *answer.shape[1:]), answer.dtype)
            leaves = np.ones(len(left), bool) if last else confidence >= np.float32(contender.thresholds[place])
            answers[left[leaves]] = answer[leaves]
            latency_ms[left[leaves]] = (time.perf_counter() - start) * 1e3
            left = left[~leaves]
            if last or len(left) == 0:
                break
            features = features[~leaves]
        assert answers is not None
        return answers, latency_ms

    return serve


def work(contender: Contender, queries: str, batch_size: int, pipe: Connection) -> None:
    """Answers all batches whenever it is asked to, until it is told to stop."""
    answer, rows = open_contender(contender), np.load(queries, mmap_mode="r")
    batches = [np.array(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    for batch in batches[:_WARM_UP]:
        answer(batch)
    pipe.send("ready")
    while pipe.recv() == "go":
        taken, answers, whole_ms = [], [], []
        for batch in batches:
            start = time.perf_counter()
            found, latency_ms = answer(batch)
            whole_ms.append((time.perf_counter() - start) * 1e3)
            taken.append(latency_ms)
            answers.append(found)
        pipe.send((float(np.concatenate(taken).mean()), float(np.mean(whole_ms)), np.concatenate(answers)))


def list_contenders(runs: Sequence[RunFolder], folder: Path, threads: int) -> list[Contender]:
    """Returns everything to measure; graphs that have to be made for it go into a folder."""
    found: dict[str, Contender] = {}
    for run in runs:
        model, plan = open_model(run.model, remedy=""), read_json(run.plan / EXIT_PLAN_JSON, ExitPlan)
        floats = model.spec.reference or model.spec.full
        coarse = None if model.spec.reference is None else model.path(model.spec.full)
        wanted = [Contender(name=BASE, kind="ort", files=(str(model.path(floats)),), threads=threads)]
        hints = [("fp32", "f32"), *([("bf16", "bf16")] if _has_bf16() else [])] if _has_openvino() else []
        wanted += [
            Contender(name=f"whole, openvino {name}", kind="openvino", files=(str(model.path(floats)),), hint=hint,
                      threads=threads)
            for name, hint in hints
        ]  # fmt: skip
        if coarse is not None:
            wanted.append(Contender(name="whole, onnxruntime int8", kind="ort", files=(str(coarse),), threads=threads))
            if hints:
                wanted.append(Contender(name="whole, openvino int8", kind="openvino", files=(str(coarse),), hint="f32",
                                        threads=threads))  # fmt: skip
        label = f"{model.spec.precision} on {plan.backend}"
        wanted.append(Contender(name=f"bundle, {label}", kind="bundle", files=(str(run.bundle),), threads=threads))
        if plan.backend == "onnxruntime" and not plan.confidences:
            wanted.append(
                Contender(
                    name=f"by hand, {label}", kind="by hand", files=_write_stages(model, plan, folder / label),
                    thresholds=tuple(exit_.threshold for exit_ in plan.exits), threads=threads,
                )
            )  # fmt: skip
        found.update({contender.name: contender for contender in wanted})
    return list(found.values())


def _write_stages(model: Model, plan: ExitPlan, folder: Path) -> tuple[str, ...]:
    ends = [None, *(exit_.cut for exit_ in plan.exits), None]
    files = []
    for place, (after, until) in enumerate(itertools.pairwise(ends)):
        path = folder / f"stage_{place}.onnx"
        if after is None and until is None:
            path = model.path(model.spec.full)
        else:
            merge_stage(model, after=after, until=until, path=path)
        files.append(str(path))
    return tuple(files)


def _has_openvino() -> bool:
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def _has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def measure(
    contenders: Sequence[Contender], queries: str, *, batch_size: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Returns contender -> (rounds of mean latency, rounds of batch time, answers)."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for contender in contenders:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(contender, queries, batch_size, there), daemon=True)
        process.start()
        assert here.recv() == "ready"
        pipes[contender.name] = here
        processes.append(process)
    random = np.random.default_rng(seed)
    taken: dict[str, list[Any]] = {name: [] for name in pipes}
    for _ in track(range(rounds), description="measuring", total=rounds):
        for name in random.permutation(list(pipes)).tolist():
            pipes[name].send("go")
            taken[name].append(pipes[name].recv())
    for pipe in pipes.values():
        pipe.send("stop")
    for process in processes:
        process.join(10)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a bundle against what one would run instead.")
    parser.add_argument("--run", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--data", help="as for runtime.bench (default: what the first run was calibrated on)")
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=allowed_processors())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = [RunFolder(root=root) for root in arguments.run]
    samples, model = load_run_data(runs[0], arguments.data), open_model(runs[0].model, remedy="")
    indices = samples.indices_of("test")[: arguments.samples]
    rows, targets = samples.inputs(indices)[model.spec.full.inputs[0].name], samples.targets(indices)
    task = find_task(model.spec.task, model.spec.settings)
    with tempfile.TemporaryDirectory(prefix="pame-peers-") as folder:
        queries = str(Path(folder) / "queries.npy")
        np.save(queries, rows)
        contenders = list_contenders(runs, Path(folder), arguments.threads)
        say(f"{len(contenders)} contenders, one process each")
        taken = measure(
            contenders, queries, batch_size=arguments.batch_size, rounds=arguments.rounds, seed=arguments.seed
        )
    base_mean, base_batch = (np.median([item[place] for item in taken[BASE]]) for place in (0, 1))
    found = [
        {
            "contender": name,
            "mean_latency_ms": float(np.median([item[0] for item in items])),
            "batch_ms": float(np.median([item[1] for item in items])),
            "mean_latency_ratio": float(np.median([item[0] for item in items]) / base_mean),
            "batch_ratio": float(np.median([item[1] for item in items]) / base_batch),
            "metric": float(task.quality([items[0][2]], targets).mean(dtype=np.float64)),
        }
        for name, items in taken.items()
    ]
    found.sort(key=lambda row: row["mean_latency_ratio"])
    print_table(
        f"{len(indices)} test samples in batches of {arguments.batch_size}, {arguments.threads} threads, "
        f"{arguments.rounds} rounds; relative to the {BASE}",
        ["contender", "mean latency", "whole batch", "mean ms", "batch ms", task.metric_name],
        [
            (row["contender"], f"{row['mean_latency_ratio']:.3f}", f"{row['batch_ratio']:.3f}",
             f"{row['mean_latency_ms']:.3f}", f"{row['batch_ms']:.3f}", f"{row['metric']:.4f}")
            for row in found
        ],
    )  # fmt: skip
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({
            "contenders": found, "batch_size": arguments.batch_size, "threads": arguments.threads,
            "rounds": arguments.rounds, "samples": len(indices), "environment": environment_fingerprint(),
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
