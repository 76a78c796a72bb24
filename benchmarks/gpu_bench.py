"""What the GPU runtime costs and gains: every backend that this machine has, over three networks, beside torch.

    python benchmarks/gpu_bench.py --json gpu.json

Networks: that of the demo (ResNet-32, trained exits), a ResNet-50 for 224 x 224 images and an encoder of BERT-base's
size (128 tokens), the last two with random weights. Each has exits after a third and two thirds, with thresholds at the
median confidence, so that about half of the rows leave at each. It is timed

- engine by engine and batch size by batch size: the inference time matrix, each call followed by a wait for the GPU;
- end to end, from host array to host array, in turns: the whole network, the chain with exits, and the chain when
  nobody leaves, with CUDA graphs and without;
- in torch, eager and compiled, from the same host arrays to the same answers.

A backend that is not installed, or that refuses this GPU, is reported with its own words. ``--backend onnxruntime``
runs all of it on the processor, to try the script itself. *Not yet run on a GPU.*
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from bert_encoder import BertEncoder
from engine_builds import TOKENS, export_bert, export_demo

from artifacts import (
    BundleSpec,
    ExitPlan,
    GraphSpec,
    InferenceTimeMatrix,
    Model,
    PameError,
    PredictedLatency,
    RunFolder,
    StageSpec,
    environment_fingerprint,
)
from artifacts.console import add_common_arguments, print_table, run_command, say, track
from engines import (
    BACKENDS,
    BuildOptions,
    Device,
    DeviceOptions,
    EngineSet,
    ensure_engine,
    open_device,
    open_engine,
    plan_covers,
    run_graph,
)
from engines.gpu.detection import find_gpu
from export import (
    ExportOptions,
    ResNetConfig,
    add_heads,
    build_missing_heads,
    export_model,
    merge_stage,
    rebuild_net,
)
from planner.config import TimingConfig
from planner.measure.timing import TimedGraph, time_graphs
from runtime import Result, Runtime

NETWORKS = ("demo", "resnet50", "bert")
NOBODY = float("inf")
Batch = Mapping[str, np.ndarray]
Serve = Callable[[Batch], object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A network with two exits, cut into its stages.

    Attributes:
        name: of the network.
        model: its model folder.
        stages: (graph, file) of each stage.
        thresholds: of the exits.
        batch: name -> array of every input.
        module: torch inputs to the answer, for comparison.
    """

    name: str
    model: Model
    stages: tuple[tuple[GraphSpec, Path], ...]
    thresholds: tuple[float, ...]
    batch: Batch
    module: torch.nn.Module


class FinalAnswer(torch.nn.Module):
    """A family's net without its exits."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.backbone = net.backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.backbone.forward_with_features(x)[1]
        return answer


def prepare(name: str, folder: Path, *, batch_size: int, layers: int) -> Subject:
    """Exports a network, gives it exits, merges its stages and finds thresholds that half of the rows reach."""
    rng = np.random.default_rng(0)
    if name == "bert":
        model = export_bert(folder, "fp32", layers=layers)
        module: torch.nn.Module = BertEncoder(layers=layers, length=TOKENS)
    else:
        options = ExportOptions(net=ResNetConfig(depth=50, classes=1000, input_shape=(3, 224, 224)), weights="random")
        run = RunFolder(root=folder / name)
        model = export_demo(folder, "fp32") if name == "demo" else export_model(run, options).model
        module = FinalAnswer(rebuild_net(model))
    cuts = [cut.name for cut in model.spec.cuts]
    exits = [cuts[len(cuts) * part // 3] for part in (1, 2)]
    missing = {cut: head for cut, head in build_missing_heads(model).items() if cut in exits}
    model = add_heads(model, missing, inputs={"training": "none"})
    stages = []
    for index, (after, until) in enumerate(pairwise([None, *exits, None])):
        path = folder / name / f"stage_{index:02d}.onnx"
        stages.append((merge_stage(model, after=after, until=until, path=path), path))
    batch = {spec.name: _random_rows(rng, spec.dtype, (batch_size, *spec.row_shape)) for spec in model.spec.full.inputs}
    return Subject(
        name=name, model=model, stages=tuple(stages), thresholds=_find_thresholds(stages, batch), batch=batch,
        module=module.eval(),
    )  # fmt: skip


def _random_rows(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return np.ones(shape, dtype)


def _find_thresholds(stages: Sequence[tuple[GraphSpec, Path]], batch: Batch) -> tuple[float, ...]:
    known, found = dict(batch), []
    for graph, path in stages[:-1]:
        known |= run_graph(path, {spec.name: known[spec.name] for spec in graph.inputs})
        found.append(float(np.median(known[str(graph.confidence)])))
    return tuple(found)


def time_engines(subject: Subject, backend: str, folder: Path, config: TimingConfig) -> InferenceTimeMatrix:
    """Times the whole network, the stages and the gathers behind them."""
    spec = subject.model.spec
    graphs = [TimedGraph(row="full", onnx=subject.model.path(spec.full), graph=spec.full)]
    for index, (graph, path) in enumerate(subject.stages):
        carried = () if index == len(subject.stages) - 1 else graph.outputs[:1]
        gather = str(index) if carried else None
        graphs.append(TimedGraph(row=graph.name, onnx=path, graph=graph, gather=gather, carried=carried))
    return time_graphs(graphs, spec, folder, config, backend=backend, threads=torch.get_num_threads())


def open_servers(
    subject: Subject, backend: str, folder: Path, itm: InferenceTimeMatrix, stack: ExitStack, *, cuda_graphs: bool
) -> tuple[dict[str, Serve], Runtime]:
    """Returns who answers a batch, by name, and the runtime with exits."""
    device = open_device(backend, DeviceOptions(cuda_graphs=cuda_graphs, kernel_folder=folder))
    stack.callback(device.close)
    largest = itm.batch_sizes[-1]

    def open_set(row: str, graph: GraphSpec, onnx: Path) -> EngineSet:
        options = BuildOptions(max_batch_size=largest, batch_sizes=itm.batch_sizes if itm.fixed else ())
        built = ensure_engine(onnx, graph, folder, backend=backend, options=options)
        engine = open_engine(built, graph, threads=itm.threads, device=device)
        stack.callback(engine.close)
        times = dict(zip(itm.batch_sizes, itm.row_ms(row), strict=True))
        return EngineSet(engine, plan_covers(times, largest=largest, fixed=itm.fixed))

    full = subject.model.spec.full
    whole = open_set("full", full, subject.model.path(full))
    stages = [open_set(graph.name, graph, path) for graph, path in subject.stages]
    runtimes = {
        "full": _open_runtime(subject, [full], [whole], [None], device, largest, stack),
        "exits": _open_runtime(
            subject, [graph for graph, _ in subject.stages], stages, [*subject.thresholds, None], device, largest, stack
        ),
        "nobody leaves": _open_runtime(
            subject, [graph for graph, _ in subject.stages], stages, [NOBODY, NOBODY, None], device, largest, stack
        ),
    }
    return {name: runtime.run for name, runtime in runtimes.items()}, runtimes["exits"]


def _open_runtime(
    subject: Subject, graphs: Sequence[GraphSpec], sets: Sequence[EngineSet], thresholds: Sequence[float | None],
    device: Device, largest: int, stack: ExitStack,
) -> Runtime:  # fmt: skip
    nothing = PredictedLatency(full_ms=0, mean_ms=0, batch_ms=0, oracle_mean_ms=0)
    spec = subject.model.spec
    plan = ExitPlan(
        model_digest="", trace_digest="", search="", tolerance=0, delta=None, batch_size=largest, backend="",
        threads=1, exits=(), full_metric=1, predicted_metric=1, predicted=nothing,
    )  # fmt: skip
    stages = tuple(
        StageSpec(graph=graph, engine="", threshold=threshold, median_ms={})
        for graph, threshold in zip(graphs, thresholds, strict=True)
    )
    bundle = BundleSpec(
        name=spec.name, task=spec.task, backend="", threads=1, max_batch_size=largest, inputs=spec.full.inputs,
        outputs=tuple(spec.full.output(name) for name in spec.full.answers), stages=stages, plan=plan,
    )  # fmt: skip
    return stack.enter_context(Runtime(bundle, sets, device))


def torch_servers(subject: Subject) -> dict[str, Serve]:
    """Returns torch, eager and compiled, from host arrays to host arrays."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    module = subject.module.to(where)

    def serve(net: Callable[..., torch.Tensor]) -> Serve:
        def answer(batch: Batch) -> object:
            with torch.inference_mode():
                inputs = [torch.from_numpy(array).to(where, non_blocking=True) for array in batch.values()]
                return net(*inputs).cpu()

        return answer

    return {f"torch eager, {where}": serve(module), f"torch.compile, {where}": serve(torch.compile(module))}


def measure(serves: Mapping[str, Serve], batch: Batch, rounds: int) -> dict[str, dict[str, float]]:
    """Runs the same batch through all servers in turns; milliseconds, from call to answers."""
    for serve in serves.values():
        for _ in range(5):
            serve(batch)
    spent: dict[str, list[float]] = {name: [] for name in serves}
    for number in track(range(rounds), description="measuring", total=rounds):
        for name in serves if number % 2 == 0 else reversed(serves):
            started = perf_counter()
            serves[name](batch)
            spent[name].append((perf_counter() - started) * 1e3)
    return {
        name: {"median_ms": float(np.median(values)), "p99_ms": float(np.percentile(values, 99))}
        for name, values in spent.items()
    }


def bench_backend(subject: Subject, backend: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one network on one backend; an error of the backend is the result."""
    largest = arguments.batch_size
    config = TimingConfig(batch_sizes=tuple(sorted({1, max(1, largest // 4), max(1, largest // 2), largest})))
    try:
        itm = time_engines(subject, backend, folder, config)
        result: dict[str, Any] = {"itm": itm}
        for cuda_graphs in (True, False):
            with ExitStack() as stack:
                servers, early = open_servers(subject, backend, folder, itm, stack, cuda_graphs=cuda_graphs)
                found = measure(servers, subject.batch, arguments.rounds)
                inside = [_time_run(early, subject.batch) for _ in range(arguments.rounds)]
                engine_ms = float(np.median([run.engine_ms for run, _ in inside]))
                leaves = np.bincount(inside[0][0].exit_index, minlength=len(subject.stages)).tolist()
            result["with graphs" if cuda_graphs else "without graphs"] = {
                "end_to_end": found, "engine_ms": engine_ms, "left_at": leaves,
                "overhead_ratio": float(np.median([ms / run.engine_ms for run, ms in inside])),
            }  # fmt: skip
            if find_gpu() is None:  # graphs mean nothing on a processor
                break
    except PameError as error:
        say(f"{subject.name} on {backend}: {error}")
        return {"refused": str(error)}
    return result


def _time_run(runtime: Runtime, batch: Batch) -> tuple[Result, float]:
    started = perf_counter()
    result = runtime.run(batch)
    return result, (perf_counter() - started) * 1e3


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs everything, prints the tables and returns the result for ``--json``."""
    gpu = find_gpu()
    backends = arguments.backend or [name for name in BACKENDS if name != "onnxruntime"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pame-") as scratch:
        for name in arguments.network or NETWORKS:
            say(f"exporting {name}")
            folder = Path(scratch) / name
            subject = prepare(name, folder, batch_size=arguments.batch_size, layers=arguments.layers)
            results[name] = {
                backend: bench_backend(subject, backend, folder / "engines", arguments) for backend in backends
            }
            if not arguments.no_torch:
                results[name]["torch"] = measure(torch_servers(subject), subject.batch, arguments.rounds)
            show(name, results[name], arguments)
    return {
        "gpu": None if gpu is None else dataclasses.asdict(gpu), "torch": torch.__version__,
        "batch_size": arguments.batch_size, "rounds": arguments.rounds, "networks": results,
        "environment": environment_fingerprint(),
    }  # fmt: skip


def show(name: str, result: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Prints what was measured of one network."""
    rows = []
    for backend, found in result.items():
        if backend == "torch":
            rows += [(label, "", f"{times['median_ms']:.3f}", "", "") for label, times in found.items()]
        elif "refused" in found:
            rows.append((backend, "refused", "", "", ""))
        else:
            for way, one in ((way, found[way]) for way in ("with graphs", "without graphs") if way in found):
                for label, times in one["end_to_end"].items():
                    ratio = f"{one['overhead_ratio']:.3f}" if label == "exits" else ""
                    rows.append(
                        (backend, f"{way}, {label}", f"{times['median_ms']:.3f}", f"{one['engine_ms']:.3f}", ratio)
                    )
    print_table(
        f"{name}: a batch of {arguments.batch_size}, host to host, {arguments.rounds} rounds",
        ["backend", "what", "median, ms", "engines with exits, ms", "overhead"], rows, to_stderr=arguments.json == "-",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_bench.py", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="may be repeated (default: all)")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated (default: those of GPUs)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=12, help="of the encoder (default: %(default)s)")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    return run_command(benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
