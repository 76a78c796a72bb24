"""Peak memory of every command on a folder of very many images, against that on a small one.

    python benchmarks/big_folder.py --counts 5000 100000 --json big.json

Folders of class folders with 500 x 375 JPEGs: a few hundred are drawn, the others are hard links to them. On each of
them calibration (heads for one epoch, a trace), the planner, its validation and the benchmark run in processes of their
own, and the largest resident set of each (children included) is read from ``wait4``. Bound: with the larger folder at
most 10 % more than with the smaller one.

The network is a convolutional classifier whose weights are drawn; it is made right on its images by the classes of a
colour, so that nothing is trained but the heads.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import environment_fingerprint
from artifacts.console import add_common_arguments, print_table, run_command, say

CLASSES, SIDE = 4, 64
DRAWN = 400
WIDTH, HEIGHT = 500, 375
BOUND = 1.10
CHANNELS = (8, 16)


def write_network(path: Path) -> None:
    """Writes a classifier of (B, 3, SIDE, SIDE) that sees which of CLASSES greys an image has."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random, tensors, nodes, value, channels = np.random.default_rng(0), {}, [], "x", 3
    for layer, width in enumerate(CHANNELS):
        weight = random.normal(0, 0.02, (width, channels, 3, 3))
        weight[0, 0, 1, 1] = 1  # one channel carries the brightness on
        tensors[f"w{layer}"] = weight
        nodes += [
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1] * 4, kernel_shape=[3, 3]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        value, channels = f"r{layer}", width
    centres = (np.arange(CLASSES) + 0.5) / CLASSES
    tensors["w"] = np.zeros((channels, CLASSES))
    tensors["w"][0] = 100 * 2 * centres
    tensors["b"] = -100 * centres**2  # logits of the nearest centre
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "greys", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def write_folder(root: Path, count: int) -> None:
    """Writes ``count`` JPEGs in class folders, all but the first ``DRAWN`` of them hard links."""
    from PIL import Image

    random = np.random.default_rng(1)
    for number in range(count):
        path = root / f"c{number % CLASSES}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DRAWN:
            grey = 256 * (number % CLASSES + random.uniform(0.25, 0.75)) / CLASSES
            pixels = np.clip(random.normal(grey, 25, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=85)
        else:
            path.hardlink_to(root / f"c{number % CLASSES}" / f"{number % DRAWN:07d}.jpg")


def list_commands(data: Path, *, train: int, trace: int, test: int, threads: int) -> dict[str, list[str]]:
    """Returns the commands by name."""
    run, common = ["--run", "runs/greys"], ["--threads", str(threads)]
    return {
        "export": ["export", "greys.onnx", "--segments", "--preprocess", "unit"],
        "calibration": [
            "calibration", "greys", "--data", str(data), *common, "--epochs", "1", "--trace-samples", str(trace),
            *(["--samples", str(train)] if train else []),
        ],
        "planner": [
            "planner", *run, *common, "--tolerance", "0.05", "--batch-size", "32", "--rounds", "3", "--time-budget",
            "10",
        ],
        "validate": ["planner", "validate", *run, "--batch-size", "32", "--resplits", "50"],
        "bench": ["runtime.bench", *run, "--rounds", "1", "--samples", str(test)],
    }  # fmt: skip


def run_measured(words: Sequence[str], place: Path) -> dict[str, Any]:
    """Runs ``python -m WORDS`` in a folder; returns its exit code, seconds and peak resident set in MB."""
    log = place / f"{words[0]}.log"
    with log.open("ab") as stream:
        started = time.monotonic()
        child = os.posix_spawn(
            sys.executable, [sys.executable, "-m", *words],
            {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)],
        )  # fmt: skip
        _, status, usage = os.wait4(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        say(log.read_text(errors="replace")[-2000:])
    return {"code": code, "seconds": time.monotonic() - started, "peak_mb": usage.ru_maxrss / 1024}


def measure_folder(count: int, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Makes a folder and runs every command on it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix=f"big-folder-{count}-", dir=arguments.scratch) as scratch:
        place = Path(scratch)
        write_network(place / "greys.onnx")
        write_folder(place / "images", count)
        test = min(arguments.test, count // 5)
        commands = list_commands(
            place / "images", train=arguments.train, trace=arguments.trace, test=test, threads=arguments.threads
        )
        found = {}
        os.chdir(place)
        try:
            for name, words in commands.items():
                say(f"{count} images: {name}")
                found[name] = run_measured(words, place)
                if found[name]["code"]:
                    break
        finally:
            os.chdir(before)
    return found


def compare(results: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Returns command -> peak memory with the largest folder over that with the smallest."""
    small, large = results[min(results)], results[max(results)]
    return {name: large[name]["peak_mb"] / small[name]["peak_mb"] for name in small if name in large}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the memory of every command on folders of many images.")
    add_common_arguments(parser)
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 100_000], help="images (default: %(default)s)")
    parser.add_argument("--train", type=int, default=2_000, help="samples to train on; 0: all (default: %(default)s)")
    parser.add_argument("--trace", type=int, default=5_000, help="samples to trace (default: %(default)s)")
    parser.add_argument("--test", type=int, default=5_000, help="samples to benchmark (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where the folders are made (default: TMPDIR)")
    return parser


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, and returns the result for ``--json``."""
    results = {count: measure_folder(count, arguments) for count in arguments.counts}
    ratios = compare(results)
    rows = [
        [name, *(f"{results[count][name]['peak_mb']:.0f}" for count in arguments.counts), f"{ratio:.3f}"]
        for name, ratio in ratios.items()
    ]
    columns = ["peak memory, MB", *(f"{count} images" for count in arguments.counts), "ratio"]
    print_table("", columns, rows, to_stderr=arguments.json == "-")
    kept = all(ratio <= BOUND for ratio in ratios.values()) and len(ratios) == 5
    say(f"bound {BOUND:g}: {'kept' if kept else 'NOT kept'}")
    return {
        "commands": {str(count): found for count, found in results.items()}, "peak_ratio": ratios, "bound": BOUND,
        "kept": kept, "drawn": DRAWN, "train": arguments.train, "trace": arguments.trace, "test": arguments.test,
        "environment": environment_fingerprint(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(bench, make_parser().parse_args()))
