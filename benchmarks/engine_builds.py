"""TensorRT engine builds: seconds and bytes, per precision and layout of the shape profiles.

    python benchmarks/engine_builds.py --engine tensorrt-rtx --json builds.json

For the network of the demo (ResNet-32 with its trained exit heads, every stage of the plan that uses all exits, and
the whole network) and for an encoder of BERT-base's size (``bert_encoder.py``, random weights, 128 tokens, three stages
and the whole). Batch sizes 1, 8 and 32. A build is timed as ``python -m engines build`` does it, parsing included,
publishing excluded; layouts and precisions take turns, and the best of ``--rounds`` counts, since other work on the
machine can only add to it.

The last table compares the bytes of one engine with a profile per batch size with those of one with a single profile:
the weights should be stored once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bert_encoder import BertEncoder, example_inputs

from artifacts import GraphSpec, Model, RunFolder, environment_fingerprint
from artifacts.console import add_common_arguments, print_table, run_command, say, track
from engines import PROFILE_WAYS, BuildOptions, builder, fixed_batch_sizes
from export import ExportOptions, add_heads, build_missing_heads, export_model, export_torch, merge_stage

SIZES = (1, 8, 32)
TOKENS = 128
LARGE_BYTES = 5_000_000
NETWORKS = ("demo", "bert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A graph to build."""

    network: str
    precision: str
    onnx: Path
    graph: GraphSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One row of the table: the best time of all rounds, and the bytes of all serialised engines."""

    network: str
    graph: str
    precision: str
    profiles: str
    seconds: float
    size_bytes: int


def export_demo(folder: Path, precision: str) -> Model:
    """Exports the demo network."""
    return export_model(RunFolder(root=folder / "demo"), ExportOptions(precision=precision)).model


def export_bert(folder: Path, precision: str, *, layers: int) -> Model:
    """Exports an encoder and gives it untrained exit heads after each third."""
    torch.manual_seed(0)
    run = RunFolder(root=folder / "bert")
    result = export_torch(
        run, BertEncoder(layers=layers, length=TOKENS), example_inputs(TOKENS), input_names=["ids", "mask"],
        output_names=["logits"], options=ExportOptions(precision=precision),
    )  # fmt: skip
    return result.model


def find_subjects(network: str, precision: str, folder: Path, *, layers: int) -> list[Subject]:
    """Exports a network and returns the whole of it and its stages."""
    if network == "demo":
        model = export_demo(folder, precision)
        exits = [cut.name for cut in model.spec.candidates]
    else:
        model = export_bert(folder, precision, layers=layers)
        cuts = [cut.name for cut in model.spec.cuts]
        exits = [cuts[len(cuts) * part // 3] for part in (1, 2)]
        heads = {name: head for name, head in build_missing_heads(model).items() if name in exits}
        model = add_heads(model, heads, inputs={"training": "none"})
    found = [Subject(network=network, precision=precision, onnx=model.path(model.spec.full), graph=model.spec.full)]
    for index, (after, until) in enumerate(pairwise([None, *exits, None])):
        path = folder / network / f"stage_{index:02d}.onnx"
        stage = merge_stage(model, after=after, until=until, path=path)
        found.append(Subject(network=network, precision=precision, onnx=path, graph=stage))
    return found


def build_once(subject: Subject, backend: str, way: str) -> tuple[float, int]:
    """Returns seconds and bytes of one build."""
    options = BuildOptions(max_batch_size=max(SIZES), batch_sizes=SIZES, profiles=way)
    made_by = builder(backend, replace(options, batch_sizes=fixed_batch_sizes(backend, options)))
    key = made_by.key(subject.onnx)
    with tempfile.TemporaryDirectory(prefix="pame-") as folder:
        started = time.perf_counter()
        made_by.build(subject.onnx, Path(folder), key)
        seconds = time.perf_counter() - started
        return seconds, sum(path.stat().st_size for path in Path(folder).glob("*.trt"))


def measure(subjects: Sequence[Subject], backend: str, rounds: int) -> list[Built]:
    """Builds every graph with every layout of the profiles, in turns."""
    best: dict[tuple[int, str], Built] = {}
    jobs = [(index, way) for _ in range(rounds) for index in range(len(subjects)) for way in PROFILE_WAYS]
    for index, way in track(jobs, description="building engines", total=len(jobs)):
        subject = subjects[index]
        seconds, size = build_once(subject, backend, way)
        row = Built(
            network=subject.network, graph=subject.graph.name, precision=subject.precision, profiles=way,
            seconds=seconds, size_bytes=size,
        )  # fmt: skip
        before = best.get((index, way), row)
        best[index, way] = replace(row, seconds=min(seconds, before.seconds))
    return list(best.values())


def compare_bytes(rows: Sequence[Built]) -> list[dict[str, Any]]:
    """Returns, per graph, the bytes of one engine with a profile per batch size over those with a single profile."""
    sizes = {(row.network, row.graph, row.precision, row.profiles): row.size_bytes for row in rows}
    return [
        {
            "network": row.network, "graph": row.graph, "precision": row.precision, "single_bytes": row.size_bytes,
            "per_batch_ratio": sizes[row.network, row.graph, row.precision, "per-batch"] / row.size_bytes,
            "separate_ratio": sizes[row.network, row.graph, row.precision, "separate"] / row.size_bytes,
        }
        for row in rows
        if row.profiles == "range"
    ]  # fmt: skip


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs everything, prints the tables and returns the result for ``--json``."""
    subjects: list[Subject] = []
    with tempfile.TemporaryDirectory(prefix="pame-") as scratch:
        for network in arguments.network or NETWORKS:
            for precision in ("fp32", "fp16"):
                subjects += find_subjects(network, precision, Path(scratch) / precision, layers=arguments.layers)
        say(f"building {len(subjects)} graphs in {len(PROFILE_WAYS)} ways, {arguments.rounds} times each")
        rows = measure(subjects, arguments.engine, arguments.rounds)
        key = builder(arguments.engine, BuildOptions(max_batch_size=max(SIZES))).key(subjects[0].onnx)
    compared = compare_bytes(rows)
    show(rows, compared, f"{arguments.engine} {key.backend_version}")
    return {
        "engine": arguments.engine, "version": key.backend_version, "batch_sizes": SIZES, "rounds": arguments.rounds,
        "builds": rows, "bytes": compared, "environment": environment_fingerprint(),
    }  # fmt: skip


def show(rows: Sequence[Built], compared: Sequence[dict[str, Any]], title: str) -> None:
    """Prints the tables."""
    print_table(
        f"{title}: builds for batch sizes {', '.join(map(str, SIZES))}",
        ["network", "graph", "precision", "profiles", "s", "MB"],
        [
            (row.network, row.graph, row.precision, row.profiles, f"{row.seconds:.2f}", f"{row.size_bytes / 1e6:.2f}")
            for row in rows
        ],
    )
    print_table(
        f"\nbytes over those of one engine with a single profile (above {LARGE_BYTES / 1e6:g} MB the weights dominate)",
        ["network", "graph", "precision", "single, MB", "per-batch", "separate"],
        [
            (row["network"], row["graph"], row["precision"], f"{row['single_bytes'] / 1e6:.2f}",
             f"{row['per_batch_ratio']:.3f}", f"{row['separate_ratio']:.2f}")
            for row in compared
        ],
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_common_arguments(parser)
    parser.add_argument("--engine", choices=("tensorrt", "tensorrt-rtx"), default="tensorrt-rtx")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="may be repeated (default: all)")
    parser.add_argument("--layers", type=int, default=12, help="of the encoder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return run_command(benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
