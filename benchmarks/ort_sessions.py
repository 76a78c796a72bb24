"""ONNX Runtime sessions: the settings under which a chain of sessions takes no longer than the whole network.

    python benchmarks/ort_sessions.py --json ort_sessions.json

Three questions, on a CIFAR-style residual network with random weights:

``chain``    the whole network in one session against the same network as a chain of sessions, per setting of the
             thread pools. A spinning pool disturbs its neighbours, so every setting runs in a process of its own,
             the processes take turns round by round, and whole and chain alternate within one.
``batch``    one session with a dynamic batch axis against one session per batch size.
``storage``  the graph as exported against the engine as ``engines`` stores it: time to open, time of a run.

Reported are medians over rounds of medians, with the interquartile range. docs/adr/0003-onnxruntime-engines.md draws
the conclusions. Keep the machine quiet while it runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from artifacts import environment_fingerprint
from engines import BuildOptions, builder

CHOSEN = "as engines opens them"
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "spinning stops with the run": {"session.force_spinning_stop": "1"},
    "spinning for 200 us": {"session.intra_op.spin_duration_us": "200"},
    "spinning for 200 us, stops": {
        "session.force_spinning_stop": "1",
        "session.intra_op.spin_duration_us": "200",
    },
    CHOSEN: {"session.force_spinning_stop": "1", "session.intra_op.spin_duration_us": "50"},
    "global pool": {},
}
WIDTHS = (16, 32, 64)
SIDE = 28


def make_network(folder: Path, *, blocks: int, segments: int, seed: int) -> tuple[Path, list[Path]]:
    """Writes the whole network and its segments, cut between blocks at even distances."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    shapes: dict[str, tuple[int, ...]] = {"x": (1, SIDE, SIDE)}

    def convolve(source: str, name: str, width: int, size: int, stride: int) -> str:
        channels, height, _ = shapes[source]
        scale = (2 / (channels * size * size)) ** 0.5
        kernel = (rng.standard_normal((width, channels, size, size)) * scale).astype(np.float32)
        weights.extend(
            [
                numpy_helper.from_array(kernel, f"{name}.w"),
                numpy_helper.from_array(np.zeros(width, np.float32), f"{name}.b"),
            ]
        )
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.w", f"{name}.b"], [name],
                kernel_shape=[size, size], pads=[size // 2] * 4, strides=[stride, stride],
            )
        )  # fmt: skip
        side = (height + stride - 1) // stride
        shapes[name] = (width, side, side)
        return name

    def activate(source: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [name]))
        shapes[name] = shapes[source]
        return name

    tip = activate(convolve("x", "stem", WIDTHS[0], 3, 1), "stem.relu")
    tips = []
    for stage, width in enumerate(WIDTHS):
        for block in range(blocks):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            inner = activate(convolve(tip, f"{name}.c1", width, 3, stride), f"{name}.r1")
            outer = convolve(inner, f"{name}.c2", width, 3, 1)
            short = tip if shapes[tip] == shapes[outer] else convolve(tip, f"{name}.short", width, 1, stride)
            nodes.append(helper.make_node("Add", [outer, short], [f"{name}.sum"]))
            shapes[f"{name}.sum"] = shapes[outer]
            tip = activate(f"{name}.sum", f"{name}.out")
            tips.append(tip)
    nodes.append(helper.make_node("GlobalAveragePool", [tip], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    weights.append(numpy_helper.from_array(rng.standard_normal((10, WIDTHS[-1])).astype(np.float32) * 0.1, "fc.w"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.w"], ["logits"], transB=1))
    shapes["logits"] = (10,)

    def save(path: Path, first: str, last: str, part: Sequence[onnx.NodeProto]) -> Path:
        used = {name for node in part for name in node.input}
        value = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *shapes[n]]) for n in (first, last)}
        body = helper.make_graph(part, path.stem, [value[first]], [value[last]], [w for w in weights if w.name in used])
        onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path

    cuts = [tips[len(tips) * (i + 1) // segments - 1] for i in range(segments - 1)]
    produced = {node.output[0]: index for index, node in enumerate(nodes)}
    bounds = [0, *(produced[cut] + 1 for cut in cuts), len(nodes)]
    names = ["x", *cuts, "logits"]
    parts = [
        save(folder / f"segment_{i:02d}.onnx", names[i], names[i + 1], nodes[bounds[i] : bounds[i + 1]])
        for i in range(segments)
    ]
    return save(folder / "full.onnx", "x", "logits", nodes), parts


def open_session(path: Path, setting: str, *, threads: int, batch: int | None = None, optimise: bool = True) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    if setting == "global pool":
        options.intra_op_num_threads = 0
        options.use_per_session_threads = False
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in SETTINGS[setting].items():
        options.add_session_config_entry(name, value)
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bind_chain(sessions: Sequence[Any], batch: int, seed: int) -> Callable[[], None]:
    """Binds each session to the output buffer of the one before and returns the call that runs them all."""
    data = np.random.default_rng(seed).standard_normal((batch, 1, SIDE, SIDE)).astype(np.float32)
    bound, buffers = [], [data]
    for session in sessions:
        binding, source, target = session.io_binding(), session.get_inputs()[0], session.get_outputs()[0]
        result = np.zeros((batch, *target.shape[1:]), dtype=np.float32)
        binding.bind_input(source.name, "cpu", 0, np.float32, data.shape, data.ctypes.data)
        binding.bind_output(target.name, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        bound.append((session, binding))
        buffers.append(data := result)

    def run() -> None:
        assert buffers  # the bindings hold their addresses only
        for session, binding in bound:
            session.run_with_iobinding(binding)

    return run


def time_alternating(calls: dict[str, Callable[[], None]], *, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of each call; they take turns, after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in taken.items()}


def run_chain_worker(folder: Path, setting: str, *, batch: int, threads: int, repeats: int) -> dict[str, float]:
    if setting == "global pool":
        ort.set_global_thread_pool_sizes(threads, 1)
    whole = bind_chain([open_session(folder / "full.onnx", setting, threads=threads)], batch, 0)
    segments = [open_session(path, setting, threads=threads) for path in sorted(folder.glob("segment_*.onnx"))]
    chain = bind_chain(segments, batch, 0)
    started = time.process_time()
    found = time_alternating({"whole_ms": whole, "chain_ms": chain}, repeats=repeats)
    return {**found, "ratio": found["chain_ms"] / found["whole_ms"], "cpu_s": time.process_time() - started}


def summarise(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns median and interquartile range over the rounds, per figure."""
    return {
        name: {
            "median": round(float(np.median([r[name] for r in rounds])), 4),
            "iqr": round(float(np.subtract(*np.percentile([r[name] for r in rounds], [75, 25]))), 4),
        }
        for name in rounds[0]
    }


def measure_chain(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {f"{s}, batch {b}": [] for b in arguments.batch_size for s in SETTINGS}
    for _ in range(arguments.rounds):
        for batch in arguments.batch_size:
            for setting in SETTINGS:
                command = [
                    sys.executable, __file__, "--worker", setting, "--folder", str(folder), "--batch-size", str(batch),
                    "--threads", str(arguments.threads), "--repeats", str(arguments.repeats),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[f"{setting}, batch {batch}"].append(json.loads(done.stdout))
    return {name: summarise(rounds) for name, rounds in found.items()}


def measure_batch(full: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    dynamic = open_session(full, CHOSEN, threads=arguments.threads)
    found = {}
    for batch in arguments.batch_size:
        fixed = open_session(full, CHOSEN, threads=arguments.threads, batch=batch)
        calls = {"dynamic_ms": bind_chain([dynamic], batch, 0), "fixed_ms": bind_chain([fixed], batch, 0)}
        rounds = [time_alternating(calls, repeats=arguments.repeats) for _ in range(arguments.rounds)]
        for item in rounds:
            item["fixed / dynamic"] = item["fixed_ms"] / item["dynamic_ms"]
        found[f"batch {batch}"] = summarise(rounds)
    return found


def measure_storage(full: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stored = folder / "engine"
    stored.mkdir()
    batch = max(arguments.batch_size)
    made_by = builder("onnxruntime", BuildOptions(max_batch_size=batch))
    made_by.build(full, stored, made_by.key(full))
    rounds = []
    for _ in range(arguments.rounds):
        item, calls = {}, {}
        for name, path, optimise in (("exported", full, True), ("stored", stored / "graph.onnx", False)):
            start = time.perf_counter()
            session = open_session(path, CHOSEN, threads=arguments.threads, optimise=optimise)
            item[f"{name}_open_ms"] = (time.perf_counter() - start) * 1e3
            calls[f"{name}_run_ms"] = bind_chain([session], batch, 0)
        rounds.append({**item, **time_alternating(calls, repeats=arguments.repeats)})
    return summarise(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here (default: stdout)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--blocks", type=int, default=5, help="residual blocks per stage (5: ResNet-32)")
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        batch, threads, repeats = arguments.batch_size[0], arguments.threads, arguments.repeats
        found = run_chain_worker(arguments.folder, arguments.worker, batch=batch, threads=threads, repeats=repeats)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, _ = make_network(folder, blocks=arguments.blocks, segments=arguments.segments, seed=0)
        result = {
            "settings": {
                k: v
                for k, v in vars(arguments).items()
                if k in {"batch_size", "blocks", "segments", "threads", "rounds", "repeats"}
            },
            "environment": environment_fingerprint(),
            "chain": measure_chain(folder, arguments),
            "batch": measure_batch(full, arguments),
            "storage": measure_storage(full, folder, arguments),
        }
    text = json.dumps(result, indent=1)
    if arguments.json is None:
        print(text)
    else:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
