"""A task of somebody's own: dense label maps judged by mIoU, its samples with two inputs, and a network with exits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from artifacts import Answers, Cut, GraphSpec, ModelSpec, RunFolder, TensorSpec, array_digest, new_artifact
from artifacts import write_model_spec as write_spec

SIDE, CLASSES, SAMPLES = 8, 3, 600
PIXELS = TensorSpec(name="pixels", dtype="float32", row_shape=(1, SIDE, SIDE))
GAIN = TensorSpec(name="gain", dtype="float32", row_shape=(1,))


class LabelMaps:
    """Classes of pixels; the metric is the mean over classes of intersection by union over all samples."""

    name = "label-maps"
    metric_name = "mIoU"
    confidence = "mean-max-softmax"
    loss = "cross-entropy"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        """The share of right pixels."""
        right: np.ndarray = (answers[0].argmax(axis=1) == targets).mean(axis=(1, 2))
        return right.astype(np.float32)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        return self.quality(answers, final[0].argmax(axis=1))

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray | None:
        found = answers[0].argmax(axis=1)
        columns = []
        for label in range(CLASSES):
            here, there = found == label, targets == label
            columns += [(here & there).sum(axis=(1, 2)), (here | there).sum(axis=(1, 2))]
        return np.stack(columns, axis=1).astype(np.float64)

    def summarise(self, counts: np.ndarray, /) -> float:
        pairs = counts.reshape(CLASSES, 2)
        seen = pairs[:, 1] > 0
        return float((pairs[seen, 0] / pairs[seen, 1]).mean())

    def predictions(self, _answers: Answers, /) -> np.ndarray | None:
        return None


class Scenes:
    """Grey pictures with a gain of their own, and the class of every pixel; made when they are asked for."""

    name = "scenes"
    labelled = True

    def indices_of(self, part: str, /) -> np.ndarray:
        start = ("train", "calibrate", "test").index(part)
        return np.arange(start, SAMPLES, 3)

    def inputs(self, indices: np.ndarray, /) -> Mapping[str, np.ndarray]:
        scenes = [self._scene(index) for index in indices]
        return {
            "pixels": np.stack([pixels for pixels, _ in scenes]),
            "gain": np.array([[gain] for _, gain in scenes], np.float32),
        }

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        """What a person would say: dark, middle or bright after smoothing."""
        found = []
        for index in indices:
            pixels, gain = self._scene(index)
            smooth = pixels[0] * gain
            for _ in range(2):
                smooth = smooth + 0.5 * blur(smooth)
            random = np.random.default_rng([1, int(index)])
            labels = np.digitize(smooth, [0.45 * 2.25, 0.55 * 2.25])
            found.append(np.where(random.random(labels.shape) < 0.03, 1, labels))
        return np.array(found, np.int64)

    def digests(self) -> Mapping[str, str]:
        everything = np.arange(SAMPLES)
        return {
            "images": array_digest(self.inputs(everything)["pixels"]),
            "labels": array_digest(self.targets(everything)),
            **{f"indices.{part}": array_digest(self.indices_of(part)) for part in ("train", "calibrate", "test")},
        }

    @staticmethod
    def _scene(index: int) -> tuple[np.ndarray, float]:
        random = np.random.default_rng(int(index))
        edge = random.integers(1, SIDE)
        pixels = random.uniform(0.0, 0.35, (SIDE, SIDE))
        pixels[:, edge:] += 0.6
        gain = random.uniform(0.9, 1.1)
        return (pixels / gain)[None].astype(np.float32), float(np.float32(gain))


def blur(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture, 1, mode="edge")
    rows = [padded[r : r + SIDE, c : c + SIDE] for r in range(3) for c in range(3)]
    return np.mean(rows, axis=0)


def write_run(run: RunFolder) -> None:
    """Writes a network of three segments, each smoother than the one before and the last far slower, and its exits."""
    hidden = [TensorSpec(name=f"h{index}", dtype="float32", row_shape=(4, SIDE, SIDE)) for index in range(3)]
    with new_artifact(run.model, kind="model") as folder:
        segments = [
            write_graph(folder, f"segment_{index:02d}", (PIXELS, GAIN) if index == 0 else (hidden[index - 1],), [index])
            for index in range(3)
        ]
        heads = {
            f"h{index}": write_graph(folder, f"exit_h{index}", (hidden[index],), [], answers=True) for index in range(2)
        }
        full = write_graph(folder, "full", (PIXELS, GAIN), [0, 1, 2], answers=True)
        final = write_graph(folder, "final_head", (hidden[2],), [], answers=True)
        cuts = tuple(Cut(name=spec.name, main=spec) for spec in hidden)
        spec = ModelSpec(
            name="scenes", family="onnx", task=LabelMaps.name, full=full, cuts=cuts, segments=tuple(segments),
            final_head=final, heads=heads,
        )  # fmt: skip
        write_spec(folder, spec)


def write_graph(
    folder: Path, name: str, inputs: tuple[TensorSpec, ...], layers: list[int], *, answers: bool = False
) -> GraphSpec:
    """Writes some layers, and with ``answers`` the classes of pixels and their confidence behind them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights: dict[str, np.ndarray] = {}
    nodes, value = [], inputs[0].name
    for layer in layers:
        if layer == 0:  # brightness, and three channels that stay empty
            weights |= {"gain.shape": np.array([-1, 1, 1, 1]), "lift": np.eye(4, 1, dtype=np.float32)[:, :, None, None]}
            nodes += [
                helper.make_node("Reshape", ["gain", "gain.shape"], ["gain.wide"]),
                helper.make_node("Mul", ["pixels", "gain.wide"], ["bright"]),
                helper.make_node("Conv", ["bright", "lift"], ["h0"]),
            ]
        else:
            weights["blur"] = np.tile(np.eye(4, dtype=np.float32)[:, :, None, None] / 18, (1, 1, 3, 3))
            nodes += [
                helper.make_node("Pad", [value, "pads"], [f"padded{layer}"], mode="edge"),
                helper.make_node("Conv", [f"padded{layer}", "blur"], [f"soft{layer}"]),
                helper.make_node("Add", [value, f"soft{layer}"], [f"h{layer}" if layer == 1 else f"sum{layer}"]),
            ]
            weights["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
        if layer == 2:  # as slow as a network that is worth leaving early
            weights |= {"wide": np.ones((256, 4, 3, 3), np.float32), "back": np.zeros((4, 256, 3, 3), np.float32)}
            nodes += [
                helper.make_node("Conv", ["sum2", "wide"], ["work0"], pads=[1] * 4),
                helper.make_node("Conv", ["work0", "back"], ["work1"], pads=[1] * 4),
                helper.make_node("Add", ["sum2", "work1"], ["h2"]),
            ]
        value = f"h{layer}"
    outputs = [TensorSpec(name=value, dtype="float32", row_shape=(4, SIDE, SIDE))]
    if answers:
        scale = 1.5 ** int(value[1:])  # what smoothing has added
        slopes = np.zeros((CLASSES, 4, 1, 1), np.float32)
        slopes[:, 0, 0, 0] = np.array([-60, 0, 60]) / scale
        weights |= {
            f"{name}.w": slopes,
            f"{name}.b": np.array([27, 0, -33], np.float32),
            f"{name}.axes": np.array([1, 2]),
        }
        nodes += [
            helper.make_node("Conv", [value, f"{name}.w", f"{name}.b"], [f"{name}.maps"]),
            helper.make_node("Softmax", [f"{name}.maps"], [f"{name}.shares"], axis=1),
            helper.make_node("ReduceMax", [f"{name}.shares"], [f"{name}.best"], axes=[1], keepdims=0),
            helper.make_node("ReduceMean", [f"{name}.best"], [f"{name}.confidence"], axes=[1, 2], keepdims=0),
        ]
        outputs = [
            TensorSpec(name=f"{name}.maps", dtype="float32", row_shape=(CLASSES, SIDE, SIDE)),
            TensorSpec(name=f"{name}.confidence", dtype="float32", row_shape=()),
        ]
    for node in nodes:
        node.name = node.output[0]
    used = {source for node in nodes for source in node.input}

    def typed(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape])

    graph = helper.make_graph(
        nodes, name, [typed(spec) for spec in inputs], [typed(spec) for spec in outputs],
        [numpy_helper.from_array(array, key) for key, array in weights.items() if key in used],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")
    return GraphSpec(
        name=name, file=f"{name}.onnx", inputs=inputs, outputs=tuple(outputs),
        answers=(f"{name}.maps",) if answers else (), confidence=f"{name}.confidence" if answers else None,
    )  # fmt: skip
