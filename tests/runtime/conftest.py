"""A multi-exit network made of fakes whose confidences stand in its input, and what it must answer, row by row.

A row of the input ``x`` holds a number and one confidence per exit; ``mask`` travels along to every stage, and
``skip`` is written by the first stage and read by the last one alone. Every stage calls its answer and its
confidence by the same names.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import (
    BUNDLE_JSON,
    BundleSpec,
    ExitPlan,
    GraphSpec,
    ModelSpec,
    PlannedExit,
    PredictedLatency,
    StageSpec,
    StreamReference,
    TensorSpec,
    new_artifact,
    open_model,
    write_json,
    write_model_spec,
)
from calibration import ArrayImages, as_batch, image_input, load_samples
from engines import BuildOptions, Device, EngineSet, FakeEngine, HostDevice, ensure_engine, plan_covers
from runtime import Runtime, RuntimeOptions

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class StageEngines:
    """The engine set of one stage: its timed batch sizes, and whether others exist."""

    median_ms: Mapping[int, float]
    fixed: bool = False


class HostedEngine:
    """A fake whose buffers lie on another device: each run reads its inputs there and writes its outputs there."""

    def __init__(self, fake: FakeEngine, device: Device) -> None:
        self._fake, self._device = fake, device
        self.key, self.graph, self.close = fake.key, fake.graph, fake.close

    def bind(self, buffers: Mapping[str, Any]) -> Callable[[], None]:
        host, rows = HostDevice(), len(next(iter(buffers.values())))
        specs = (*self.graph.inputs, *self.graph.outputs)
        here = {spec.name: host.allocate(spec, rows) for spec in specs}
        run = self._fake.bind(here)

        def execute() -> None:
            for spec in self.graph.inputs:
                here[spec.name][...] = self._device.download(buffers[spec.name], range(rows))
            run()
            for spec in self.graph.outputs:
                self._device.upload(here[spec.name], buffers[spec.name])

        return execute


@dataclass(kw_only=True)
class FakeNet:
    """A runtime over fakes and its reference."""

    thresholds: tuple[float, ...]
    max_batch_size: int = 8
    engines: Sequence[StageEngines] | None = None
    masked: bool = True
    faults: Mapping[int, Exception] = field(default_factory=dict)
    hook: Callable[[], None] | None = None
    check_finite: bool = True
    reference: StreamReference | None = None
    task: str = "classification"
    fakes: list[FakeEngine] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.thresholds) + 1

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        x = TensorSpec(name="x", dtype="float32", row_shape=(1 + self.depth,))
        return (x, TensorSpec(name="mask", dtype="bool", row_shape=(2,))) if self.masked else (x,)

    def graph(self, stage: int) -> GraphSpec:
        last = stage == self.depth - 1
        main = TensorSpec(name="x" if stage == 0 else f"h{stage}", dtype="float32", row_shape=(1 + self.depth,))
        skip = TensorSpec(name="skip", dtype="int64", row_shape=())
        answer = TensorSpec(name="answer", dtype="float32", row_shape=(2,))
        confidence = TensorSpec(name="confidence", dtype="float32", row_shape=())
        onward = (TensorSpec(name=f"h{stage + 1}", dtype="float32", row_shape=main.row_shape),)
        return GraphSpec(
            name=f"stage_{stage}",
            file=f"stage_{stage}.onnx",
            inputs=(main, *self.inputs[1:], *((skip,) if last and stage > 0 else ())),
            outputs=((() if last else onward) + ((skip,) if stage == 0 and not last else ()) + (answer, confidence)),
            confidence="confidence",
            answers=("answer",),
        )

    def compute(self, stage: int) -> Callable[[Values], Values]:
        def outputs(values: Values) -> Values:
            if self.hook is not None:
                self.hook()
            main = values["x" if stage == 0 else f"h{stage}"]
            mask = values["mask"].astype(np.float32) if self.masked else np.zeros((len(main), 2), np.float32)
            skipped = values["skip"].astype(np.float32) if "skip" in values else np.float32(0)
            first = main[:, 0] + mask[:, 0] + skipped
            onward = main.copy()
            onward[:, 0] += 1
            return {
                f"h{stage + 1}": onward,
                "skip": np.nan_to_num(main[:, 0]).astype(np.int64) * 2,
                "answer": np.stack([first, first * mask[:, 1] + np.float32(stage)], axis=1),
                "confidence": main[:, 1 + stage],
            }

        return outputs

    def spec(self) -> BundleSpec:
        thresholds = (*self.thresholds, None)
        exits = tuple(
            PlannedExit(cut=f"cut_{index}", threshold=threshold, leaving_share=0.1, metric=1.0, arrival_ms=1.0)
            for index, threshold in enumerate(self.thresholds)
        )
        return BundleSpec(
            name="fake",
            task=self.task,
            backend="fake",
            threads=1,
            max_batch_size=self.max_batch_size,
            inputs=self.inputs,
            outputs=(TensorSpec(name="logits", dtype="float32", row_shape=(2,)),),
            stages=tuple(
                StageSpec(graph=self.graph(stage), engine=f"engines/{stage}", threshold=threshold, median_ms={"1": 1.0})
                for stage, threshold in enumerate(thresholds)
            ),
            plan=ExitPlan(
                model_digest="m", trace_digest="t", search="greedy", tolerance=0.01, delta=None,
                batch_size=self.max_batch_size, backend="fake", threads=1, exits=exits, full_metric=1.0,
                predicted_metric=1.0,
                predicted=PredictedLatency(full_ms=2.0, mean_ms=1.0, batch_ms=2.0, oracle_mean_ms=1.0),
                reference=self.reference,
            ),
        )  # fmt: skip

    def engine_sets(self) -> list[EngineSet]:
        made = []
        for stage in range(self.depth):
            chosen = StageEngines(median_ms={self.max_batch_size: 1.0}) if self.engines is None else self.engines[stage]
            fake = FakeEngine(
                self.graph(stage),
                max_batch_size=max(chosen.median_ms),
                batch_sizes=tuple(chosen.median_ms) if chosen.fixed else (),
                outputs=self.compute(stage),
                faults=self.faults if stage == self.depth - 1 else {},
            )
            self.fakes.append(fake)
            covers = plan_covers(chosen.median_ms, largest=self.max_batch_size, fixed=chosen.fixed)
            made.append(EngineSet(fake, covers))
        return made

    def open_on(self, device: Device) -> Runtime:
        """Opens the network over buffers of another device; its fakes still compute on the host."""
        return Runtime(self.spec(), self.engine_sets_on(device), device, RuntimeOptions(check_finite=self.check_finite))

    def engine_sets_on(self, device: Device) -> list[EngineSet]:
        return [EngineSet(HostedEngine(fake, device), stage.covers) for fake, stage in self._pairs()]

    def _pairs(self) -> list[tuple[FakeEngine, EngineSet]]:
        self.fakes.clear()
        sets = self.engine_sets()
        return list(zip(self.fakes, sets, strict=True))

    def open(self, **options: Any) -> Runtime:
        chosen = RuntimeOptions(check_finite=self.check_finite, **options)
        return Runtime(self.spec(), self.engine_sets(), HostDevice(), chosen)

    def batch(self, confidence: np.ndarray, *, mask: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Returns the inputs whose rows are 0, 1, 2 ... and have these confidences (B, depth) at the exits."""
        count = len(confidence)
        number = np.arange(count, dtype=np.float32)[:, None]
        x = np.concatenate([number, confidence.astype(np.float32)], axis=1)
        if not self.masked:
            return (x,)
        return (x, np.zeros((count, 2), np.bool_) if mask is None else mask)

    def answer_row(self, x: np.ndarray, mask: np.ndarray) -> tuple[int, np.float32, np.ndarray]:
        """Returns where one row leaves, its confidence and its answer: one row alone, in plain Python."""
        values = {"x": x[None], "mask": mask[None]}
        for stage, threshold in enumerate((*self.thresholds, None)):
            made = self.compute(stage)(values)
            confidence = made["confidence"][0]
            if threshold is None or confidence >= np.float32(threshold):
                return stage, confidence, made["answer"][0]
            values[f"h{stage + 1}"] = made[f"h{stage + 1}"]
            if stage == 0:
                values["skip_kept"] = made["skip"]
            if stage + 1 == self.depth - 1:
                values["skip"] = values["skip_kept"]
        raise AssertionError("every row leaves after the last stage")


@pytest.fixture(scope="session")
def fake_net() -> type[FakeNet]:
    return FakeNet


@pytest.fixture(scope="session")
def stage_engines() -> type[StageEngines]:
    return StageEngines


IMAGE, HIDDEN, CLASSES, ROWS, SAMPLES = (1, 4, 4), 12, 4, 8, 300


@dataclass(frozen=True, kw_only=True)
class ToyRun:
    """A run made by hand: a network of two layers with an exit after the first, its bundle, engines and data.

    ``inputs`` are those of the test part in its own order; the calibrate part has no others in common with it.
    """

    root: Path
    data: Path
    inputs: np.ndarray
    labels: np.ndarray
    threshold: float
    weights: Values

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def answer_by_numpy(self, x: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits (B, classes) and confidence (B,) of the exit (0) or of the whole network (1)."""
        h = x.reshape(len(x), -1)
        for stage in range(index + 1):
            h = np.maximum(h @ self.weights[f"w{stage}"], 0)
        logits = h @ self.weights[f"v{index}"]
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits, (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)


def write_toy_graph(
    path: Path, name: str, file: str, weights: Values, *, stages: Sequence[int], onward: bool, dtype: str = "float32"
) -> GraphSpec:
    """Writes some layers h' = relu(h w) and the head behind them: logits = h' v, confidence = max softmax(logits).

    All is computed in ``dtype``, except for the confidence, which is float32 from the softmax on.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    source = "image" if stages[0] == 0 else f"h{stages[0]}"
    specs = [TensorSpec(name=source, dtype=dtype, row_shape=IMAGE if stages[0] == 0 else (HIDDEN,))]
    nodes, newest = [], source
    if stages[0] == 0:
        nodes, newest = [helper.make_node("Flatten", [source], ["flat"])], "flat"
    for stage in stages:
        nodes.append(helper.make_node("MatMul", [newest, f"w{stage}"], [f"product{stage}"]))
        newest = f"h{stage + 1}"
        nodes.append(helper.make_node("Relu", [f"product{stage}"], [newest]))
    nodes += [
        helper.make_node("MatMul", [newest, f"v{stages[-1]}"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "axes"], ["confidence"], keepdims=0),
    ]
    outputs = [
        *([TensorSpec(name=newest, dtype=dtype, row_shape=(HIDDEN,))] if onward else []),
        TensorSpec(name="logits", dtype=dtype, row_shape=(CLASSES,)),
        TensorSpec(name="confidence", dtype="float32", row_shape=()),
    ]
    values = [
        [
            helper.make_tensor_value_info(
                spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), ["batch", *spec.row_shape]
            )
            for spec in some
        ]
        for some in (specs, outputs)
    ]
    needed = [f"w{stage}" for stage in stages] + [f"v{stages[-1]}"]
    constants = [numpy_helper.from_array(weights[weight].astype(dtype), weight) for weight in needed]
    constants.append(numpy_helper.from_array(np.array([-1], np.int64), "axes"))
    graph = helper.make_graph(nodes, name, *values, constants)
    path.parent.mkdir(exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return GraphSpec(
        name=name, file=file, inputs=tuple(specs), outputs=tuple(outputs), confidence="confidence", answers=("logits",)
    )


def make_toy_data(path: Path) -> ArrayImages:
    random = np.random.default_rng(9)
    images = random.integers(0, 256, (2 * SAMPLES, *IMAGE), np.uint8)
    split = np.array(["test", "calibrate"] * SAMPLES)
    labels = random.integers(0, CLASSES, 2 * SAMPLES)
    np.savez(path, images=images, labels=labels, split=split)
    return load_samples(path, image_input(IMAGE))


def toy_weights() -> Values:
    random = np.random.default_rng(7)
    shapes = {"w0": (16, HIDDEN), "w1": (HIDDEN, HIDDEN), "v0": (HIDDEN, CLASSES), "v1": (HIDDEN, CLASSES)}
    return {name: random.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def middle_of_a_gap(confidence: np.ndarray) -> float:
    """Returns a number between two confidences as far apart as any, so that rounding decides about no row."""
    ordered = np.sort(confidence)[len(confidence) // 3 : -len(confidence) // 3]
    widest = int(np.argmax(np.diff(ordered)))
    return float(ordered[widest : widest + 2].mean())


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    pytest.importorskip("onnx", reason="writes ONNX graphs: pip install 'pame[export]'")
    pytest.importorskip("onnxruntime", reason="runs them: pip install 'pame[onnxruntime]'")
    root = tmp_path_factory.mktemp("runs") / "toy"
    root.mkdir()
    data = make_toy_data(root / "data.npz")
    test = data.indices_of("test")
    toy = ToyRun(
        root=root, data=root / "data.npz", inputs=as_batch(data.inputs(test)), labels=data.labels[test], threshold=0.0,
        weights=toy_weights(),
    )  # fmt: skip
    toy = dataclasses.replace(toy, threshold=middle_of_a_gap(toy.answer_by_numpy(toy.inputs, 0)[1]))
    with new_artifact(root / "model", kind="model") as staging:
        full = write_toy_graph(staging / "full.onnx", "full", "full.onnx", toy.weights, stages=(0, 1), onward=False)
        write_model_spec(staging, ModelSpec(name="toy", family="onnx", task="classification", full=full))
    publish_toy_bundle(toy, parameters={"data": data.digests()})
    return toy


def publish_toy_bundle(
    toy: ToyRun, *, parameters: Mapping[str, Any], backend: str = "onnxruntime", dtype: str = "float32",
    folder: Path | None = None,
) -> Path:  # fmt: skip
    """Builds the toy's stages for a backend and publishes them as a bundle; returns its folder."""
    template = FakeNet(thresholds=(toy.threshold,), max_batch_size=ROWS).spec()
    model = open_model(toy.root / "model", remedy="")
    stages = []
    folder = folder or toy.bundle
    with new_artifact(folder, kind="bundle", parameters=parameters) as staging:
        for index, stage in enumerate(template.stages):
            name = f"stage_{index:02d}"
            path = staging / "stages" / f"{name}.onnx"
            graph = write_toy_graph(
                path, name, f"stages/{name}.onnx", toy.weights, stages=(index,), onward=index == 0, dtype=dtype
            )
            options = BuildOptions(max_batch_size=ROWS)
            engine = ensure_engine(path, graph, toy.root / "engines", backend=backend, options=options)
            shutil.copytree(engine, staging / "engines" / name)
            times = {"1": 1.0, str(ROWS): 2.0}
            stages.append(dataclasses.replace(stage, graph=graph, engine=f"engines/{name}", median_ms=times))
        spec = dataclasses.replace(
            template,
            name="toy",
            backend=backend,
            inputs=stages[0].graph.inputs,
            outputs=(stages[0].graph.output("logits"),),
            stages=tuple(stages),
            plan=dataclasses.replace(template.plan, model_digest=model.digest, backend=backend),
        )
        write_json(staging / BUNDLE_JSON, spec)
    return folder


@pytest.fixture(scope="session")
def publish_toy() -> Callable[..., Path]:
    return publish_toy_bundle
