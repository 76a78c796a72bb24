"""A small real run for the planner's tests: a network of dense layers written by hand, with exits, and its data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from artifacts import Cut, GraphSpec, ModelSpec, RunFolder, TensorSpec, new_artifact, write_model_spec
from planner.commands.main import main

QUICK = (
    "--batch-size", "4", "--threads", "1", "--rounds", "3", "--contenders", "1",
    "--tail-share", "0", "--stay-allowance", "9", "--certify", "none",
)  # fmt: skip
CERTIFIED = ("--certify", "ltt", "--delta", "0.4", "--grid-step", "0.02")
WIDTH, CLASSES = 12, 3


def write_graph(folder: Path, name: str, source: TensorSpec, *, layers: int, seed: int, head: bool) -> GraphSpec:
    """Writes dense layers with ReLU, and with ``head`` an answer with its confidence, as one ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, value = [helper.make_node("Flatten", [source.name], [f"{name}.flat"])], [], f"{name}.flat"
    width = int(np.prod(source.row_shape))
    for layer in range(layers):
        out = f"h{seed + layer}"
        weight = np.random.default_rng(seed + layer).standard_normal((width, WIDTH)) / np.sqrt(width) * 2
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{seed + layer}"))
        nodes += [
            helper.make_node("MatMul", [value, f"w{seed + layer}"], [f"{out}.sum"]),
            helper.make_node("Relu", [f"{out}.sum"], [out]),
        ]
        value, width = out, WIDTH
    outputs = [TensorSpec(name=value, dtype="float32", row_shape=(WIDTH,))]
    if head:
        weight = np.random.default_rng(100 + seed + layers).standard_normal((width, CLASSES)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.w"))
        nodes += [
            helper.make_node("MatMul", [value, f"{name}.w"], [f"{name}.logits"]),
            helper.make_node("Softmax", [f"{name}.logits"], [f"{name}.shares"], axis=1),
            helper.make_node("ReduceMax", [f"{name}.shares"], [f"{name}.confidence"], axes=[1], keepdims=0),
        ]
        outputs = [
            TensorSpec(name=f"{name}.logits", dtype="float32", row_shape=(CLASSES,)),
            TensorSpec(name=f"{name}.confidence", dtype="float32", row_shape=()),
        ]

    def typed(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape])

    graph = helper.make_graph(nodes, name, [typed(source)], [typed(spec) for spec in outputs], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), folder / f"{name}.onnx")
    return GraphSpec(
        name=name, file=f"{name}.onnx", inputs=(source,), outputs=tuple(outputs),
        answers=(f"{name}.logits",) if head else (), confidence=f"{name}.confidence" if head else None,
    )  # fmt: skip


def write_dense_run(run: RunFolder) -> None:
    """Writes model and data: a dense network of four layers with three exits, all of random weights; it is right on
    about 60 % of its samples."""
    x = TensorSpec(name="x", dtype="float32", row_shape=(1, 8, 8))
    hidden = [TensorSpec(name=f"h{i}", dtype="float32", row_shape=(WIDTH,)) for i in range(4)]
    with new_artifact(run.model, kind="model") as folder:
        sources = [x, *hidden]
        segments = [write_graph(folder, f"segment_{i:02d}", sources[i], layers=1, seed=i, head=False) for i in range(4)]
        heads = {
            f"h{i}": write_graph(folder, f"exit_h{i}", hidden[i], layers=0, seed=i + 1, head=True) for i in range(3)
        }
        spec = ModelSpec(
            name="small", family="onnx", task="classification",
            full=write_graph(folder, "full", x, layers=4, seed=0, head=True),
            cuts=tuple(Cut(name=spec.name, main=spec) for spec in hidden), segments=tuple(segments), heads=heads,
            final_head=write_graph(folder, "final_head", hidden[3], layers=0, seed=4, head=True),
        )  # fmt: skip
        write_model_spec(folder, spec)
    write_data(run, 300, seed=0)


def write_data(run: RunFolder, count: int, *, seed: int) -> None:
    """Writes random images with random labels, of which 40 % are put right to the network's answers."""
    from engines import run_graph

    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 256, (count, 8, 8)).astype(np.uint8), random.integers(0, CLASSES, count)
    inputs = ((images / 255 - 0.5) / 0.29).astype(np.float32)[:, None]
    answers = run_graph(run.model / "full.onnx", {"x": inputs})["full.logits"].argmax(axis=1)
    labels = np.where(random.random(count) < 0.4, answers, labels)
    parts = np.resize(["train", "train", "train", "calibrate", "test"], count)
    np.savez(run.root / "data.npz", images=images, labels=labels, split=parts)


def plan(run: RunFolder, tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    target = tmp_path / "result.json"
    target.unlink(missing_ok=True)
    data = str(run.root / "data.npz")
    code = main(["--run", str(run.root), "--data", data, "--json", str(target), *QUICK, *arguments])
    return code, json.loads(target.read_text()) if target.exists() else {}
