"""Contenders of ``benchmarks.peers``: what each of them opens, in its own process, and how it answers a batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EXIT_PLAN_JSON, ExitPlan, GraphSpec, Model, RunFolder, find_keypoints, open_model, read_json
from export import merge_stage

BASE = "whole, onnxruntime fp32"
BACKEND = "onnxruntime"
COMPILE_BATCHES = 3
"""Batches that torch.compile and the like are warmed up with, of each size and length."""

Batch = Mapping[str, np.ndarray]
Answers = list[np.ndarray]
Serve = Callable[[Batch], tuple[Answers, np.ndarray]]
"""A batch, (B, ...) by input name -> the answers, (B, ...) per output, and the milliseconds until each row has its."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph, and the outputs that its rows are answered with."""

    file: str
    inputs: tuple[str, ...]
    answers: tuple[str, ...]
    confidence: str = ""

    @classmethod
    def of(cls, graph: GraphSpec, file: Path) -> Graph:
        return cls(
            file=str(file), inputs=tuple(spec.name for spec in graph.inputs), answers=graph.answers,
            confidence=graph.confidence or "",
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to answer queries.

    Attributes:
        name: in the table.
        kind: of ``OPENERS``.
        graphs: that it runs, in order; none where it opens the run itself.
        run: the folder of the run.
        hint: the arithmetic of OpenVINO.
        thresholds: of the exits, of a plan by hand.
        threads: of each engine.
    """

    name: str
    kind: str
    graphs: tuple[Graph, ...] = ()
    run: str = ""
    hint: str = ""
    thresholds: tuple[float, ...] = ()
    threads: int = 1


def list_contenders(
    runs: Sequence[RunFolder], folder: Path, threads: int
) -> tuple[list[Contender], list[tuple[str, str]]]:  # fmt: skip
    """Returns everything to measure, and what cannot be with the reason; stages by hand go into a folder."""
    found: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for run in runs:
        model, plan = open_model(run.model, remedy=run.remedy("export")), read_json(run.plan / EXIT_PLAN_JSON, ExitPlan)
        floats = model.spec.reference or model.spec.full
        whole = Graph.of(floats, model.path(floats))
        wanted = [Contender(name=BASE, kind="ort", graphs=(whole,))]
        hints = _openvino_hints(left_out)
        wanted += [Contender(name=f"whole, openvino {name}", kind="openvino", graphs=(whole,), hint=hint)
                   for name, hint in hints]  # fmt: skip
        if model.spec.reference is not None:
            coarse = Graph.of(model.spec.full, model.path(model.spec.full))
            wanted.append(Contender(name="whole, onnxruntime int8", kind="ort", graphs=(coarse,)))
            if hints:
                wanted.append(Contender(name="whole, openvino int8", kind="openvino", graphs=(coarse,), hint="f32"))
        label = f"{model.spec.precision} on {plan.backend}"
        wanted.append(Contender(name=f"bundle, {label}", kind="bundle"))
        if plan.backend != BACKEND:
            left_out[f"by hand, {label}"] = f"written for ONNX Runtime; this plan is for {plan.backend}"
        else:
            wanted.append(
                Contender(
                    name=f"by hand, {label}", kind="by hand", graphs=_write_stages(model, plan, folder / label),
                    thresholds=tuple(exit_.threshold for exit_ in plan.exits),
                )
            )  # fmt: skip
        wanted += _list_torch(model, plan, left_out)
        for contender in wanted:
            found.setdefault(contender.name, replace(contender, run=str(run.root), threads=threads))
    return list(found.values()), [(name, why) for name, why in left_out.items() if name not in found]


def _openvino_hints(left_out: dict[str, str]) -> list[tuple[str, str]]:
    try:
        import openvino
    except ImportError:
        left_out["whole, openvino"] = "not installed: pip install 'pame[openvino]'"
        return []
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return [("fp32", "f32"), ("bf16", "bf16")]
    left_out["whole, openvino bf16"] = "this processor has no bfloat16"
    return [("fp32", "f32")]


def _write_stages(model: Model, plan: ExitPlan, folder: Path) -> tuple[Graph, ...]:
    ends = [None, *(exit_.cut for exit_ in plan.exits), None]
    graphs = []
    for place, (after, until) in enumerate(itertools.pairwise(ends)):
        path = folder / f"stage_{place}.onnx"
        if after is None and until is None:
            graphs.append(Graph.of(model.spec.full, model.path(model.spec.full)))
        else:
            learned = None if until is None else plan.confidences.get(until)
            graphs.append(Graph.of(merge_stage(model, after=after, until=until, path=path, confidence=learned), path))
    return tuple(graphs)


def _list_torch(model: Model, plan: ExitPlan, left_out: dict[str, str]) -> list[Contender]:
    """Returns the contenders that run the network in torch."""
    names = {"torch eager": "torch", "torch.compile": "torch compiled"}
    if model.spec.family == "onnx":
        left_out |= dict.fromkeys([f"whole, {name}" for name in names], "the network was imported from ONNX")
        left_out["earlyon, whole batches"] = "the network was imported from ONNX"
        return []
    if model.spec.precision != "fp32":
        return []  # the run in float32 has them
    found = [Contender(name=f"whole, {name}", kind=kind) for name, kind in names.items()]
    try:
        import earlyon  # noqa: F401
    except ImportError:
        left_out["earlyon, whole batches"] = "not installed: pip install earlyon"
        return found
    if model.spec.task != "classification" or len(model.spec.full.inputs) != 1 or not plan.exits:
        left_out["earlyon, whole batches"] = "it takes classes of images, and needs exits"
        return found
    return [*found, Contender(name="earlyon, whole batches", kind="earlyon"),
            Contender(name="earlyon, row by row", kind="earlyon by row")]  # fmt: skip


def open_contender(contender: Contender) -> Serve:
    """Opens what a contender needs, in its own process."""
    return OPENERS[contender.kind](contender)


def open_session(file: str, threads: int) -> Any:
    """Opens a graph in ONNX Runtime with pools that do not spin when they are idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def answer_whole(run: Callable[[Batch], Sequence[np.ndarray]]) -> Serve:
    """Returns a server whose every row waits for its batch."""

    def serve(batch: Batch) -> tuple[Answers, np.ndarray]:
        start = time.perf_counter()
        answers = [np.array(answer) for answer in run(batch)]
        return answers, np.full(len(answers[0]), (time.perf_counter() - start) * 1e3)

    return serve


def _open_bundle(contender: Contender) -> Serve:
    from calibration import as_batch
    from runtime import Runtime

    runtime = Runtime.load(RunFolder(root=Path(contender.run)).bundle, threads=contender.threads, drift=None)

    def serve(batch: Batch) -> tuple[Answers, np.ndarray]:
        result = runtime.run(as_batch(batch))
        outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
        return [np.asarray(output) for output in outputs], result.latency_ms

    return serve


def _open_ort(contender: Contender) -> Serve:
    (graph,) = contender.graphs
    session = open_session(graph.file, contender.threads)
    return answer_whole(lambda batch: session.run(list(graph.answers), dict(batch)))


def _open_openvino(contender: Contender) -> Serve:
    import openvino

    (graph,) = contender.graphs
    compiled = openvino.Core().compile_model(graph.file, "CPU", {
        "INFERENCE_PRECISION_HINT": contender.hint, "INFERENCE_NUM_THREADS": contender.threads, "NUM_STREAMS": 1,
    })  # fmt: skip
    request = compiled.create_infer_request()

    def run(batch: Batch) -> Sequence[np.ndarray]:
        found = request.infer(dict(batch))
        return [found[name] for name in graph.answers]

    return answer_whole(run)


def _open_by_hand(contender: Contender) -> Serve:
    """Returns the plan as somebody would write it: a session per stage, and numpy in between."""
    sessions = [open_session(graph.file, contender.threads) for graph in contender.graphs]
    outputs = [[value.name for value in session.get_outputs()] for session in sessions]
    read = [{name for graph in contender.graphs[place:] for name in graph.inputs} for place in range(len(sessions) + 1)]

    def serve(batch: Batch) -> tuple[Answers, np.ndarray]:
        start = time.perf_counter()
        tensors = dict(batch)
        count = len(next(iter(tensors.values())))
        left, latency_ms = np.arange(count), np.zeros(count)
        answers: Answers = []
        for place, (session, graph) in enumerate(zip(sessions, contender.graphs, strict=True)):
            found = session.run(None, {name: tensors[name] for name in graph.inputs})
            tensors |= dict(zip(outputs[place], found, strict=True))
            last = place == len(sessions) - 1
            if not answers:
                answers = [np.empty((count, *tensors[name].shape[1:]), tensors[name].dtype) for name in graph.answers]
            confident = np.ones(len(left), bool) if last else (
                tensors[graph.confidence] >= np.float32(contender.thresholds[place])
            )  # fmt: skip
            for whole, name in zip(answers, graph.answers, strict=True):
                whole[left[confident]] = tensors[name][confident]
            latency_ms[left[confident]] = (time.perf_counter() - start) * 1e3
            left = left[~confident]
            if len(left) == 0:
                break
            tensors = {name: tensors[name][~confident] for name in read[place + 1] & set(tensors)}
        return answers, latency_ms

    return serve


def _rebuild(contender: Contender) -> tuple[Any, Model]:
    """Returns the run's network in torch, ready to answer."""
    import torch

    from export import rebuild_net

    torch.set_num_threads(contender.threads)
    model = open_model(RunFolder(root=Path(contender.run)).model, remedy="")
    return rebuild_net(model).eval().requires_grad_(requires_grad=False), model


_REDUCED: Mapping[str, Callable[[Any], np.ndarray]] = {
    "classes": lambda answer: answer.argmax(dim=1).byte().numpy(),
    "keypoints": lambda answer: find_keypoints(answer.numpy()),
}
"""What is made of a torch network's answers where the run's graph makes it too."""


def _open_torch(contender: Contender, *, compiled: bool = False) -> Serve:
    import torch

    net, model = _rebuild(contender)
    names = [spec.name for spec in model.spec.full.inputs]
    reduce = _REDUCED.get(str(model.spec.settings.get("answers")), lambda answer: answer.numpy())
    backbone = torch.compile(net.backbone, dynamic=False) if compiled else net.backbone

    def run(batch: Batch) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            answer = backbone(*(torch.from_numpy(batch[name]) for name in names))
            return [reduce(answer)]

    return answer_whole(run)


def _open_earlyon(contender: Contender, *, by_row: bool = False) -> Serve:
    """Returns the network with the plan's exits and our trained heads, routed and calibrated by ``earlyon``.

    It lets a batch leave together, when its least confident row may, or takes rows one by one.
    """
    import torch
    from earlyon import EarlyExitConfig, EarlyExitWrapper, ExitPoint
    from earlyon.core.thresholds import calibrate_thresholds

    net, model = _rebuild(contender)
    run = RunFolder(root=Path(contender.run))
    plan = read_json(run.plan / EXIT_PLAN_JSON, ExitPlan)
    heads = dict(zip(net.cut_names, net.heads, strict=True))
    cuts = [model.spec.cuts[model.spec.cut_index(exit_.cut)] for exit_ in plan.exits]
    points = [
        ExitPoint(f"e{place}", cut.name, in_channels=int(cut.main.row_shape[0])) for place, cut in enumerate(cuts)
    ]
    (image,) = model.spec.full.inputs
    config = EarlyExitConfig(
        backbone="custom", num_classes=int(model.spec.settings["classes"]), exit_points=points,
        confidence_thresholds=[0.8] * len(points),
    )  # fmt: skip
    wrapper = EarlyExitWrapper(
        net.backbone, {point.name: heads[point.layer_name] for point in points}, torch.nn.Identity(), config,
        input_shape=(1, *image.row_shape),
    ).eval()  # fmt: skip
    calibrate_thresholds(wrapper, _calibration_rows(run, image.name), target_accuracy_drop=plan.tolerance)

    def by_batch(batch: Batch) -> Sequence[np.ndarray]:
        return [wrapper.forward_inference_batched(torch.from_numpy(batch[image.name])).predictions.numpy()]

    def serve(batch: Batch) -> tuple[Answers, np.ndarray]:
        start = time.perf_counter()
        found, latency_ms = [], []
        for row in torch.from_numpy(batch[image.name]).split(1):
            found.append(wrapper(row, mode="inference").prediction.numpy())
            latency_ms.append((time.perf_counter() - start) * 1e3)
        return [np.concatenate(found)], np.array(latency_ms)

    return serve if by_row else answer_whole(by_batch)


def _calibration_rows(run: RunFolder, name: str, count: int = 2048, size: int = 64) -> list[tuple[Any, Any]]:
    """Returns batches of the calibrate part, as torch's loaders give them."""
    import torch

    from calibration import load_run_data

    samples = load_run_data(run)
    rows = samples.indices_of("calibrate")[:count]
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        (torch.from_numpy(np.asarray(samples.inputs(part)[name])), torch.from_numpy(np.asarray(samples.targets(part))))
        for part in parts
    ]


OPENERS: Mapping[str, Callable[[Contender], Serve]] = {
    "bundle": _open_bundle,
    "by hand": _open_by_hand,
    "ort": _open_ort,
    "openvino": _open_openvino,
    "torch": _open_torch,
    "torch compiled": lambda contender: _open_torch(contender, compiled=True),
    "earlyon": _open_earlyon,
    "earlyon by row": lambda contender: _open_earlyon(contender, by_row=True),
}
"""How each kind of contender is opened."""
