"""Toy: three layers with two exits, written by hand, for rehearsals: made in no time and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from artifacts import GraphSpec, TensorSpec
from benchmarks.gpu.nets.subjects import SubjectSpec, set_thresholds, write_subject

IMAGE, HIDDEN, CLASSES, LAYERS = 16, 12, 4, 3
_ROWS = 64


def write_toy(folder: Path, name: str, *, half: bool) -> None:
    """Writes the toy's folder; ``half`` computes in float16, inputs and answers stay float32."""
    shapes = [(IMAGE, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN)]
    rng = np.random.default_rng(7)
    weights = {f"w{layer}": rng.standard_normal(shape, np.float32) / 2 for layer, shape in enumerate(shapes)}
    weights |= {f"v{layer}": rng.standard_normal((HIDDEN, CLASSES), np.float32) / 2 for layer in range(LAYERS)}
    every = range(LAYERS)
    stages = tuple(
        _write_part(folder, f"stage_{layer:02d}", weights, layers=(layer,), half=half, onward=layer != every[-1])
        for layer in every
    )
    heads = tuple(_write_part(folder, f"head_{layer:02d}", weights, head_of=layer, half=half) for layer in every[:-1])
    full = _write_part(folder, "full", weights, layers=tuple(every), half=half)
    samples = {"image": rng.standard_normal((_ROWS, IMAGE), np.float32)}
    spec = SubjectSpec(name=name, full=full, stages=stages, heads=heads, thresholds=())
    write_subject(folder, set_thresholds(folder, spec, samples), samples)


def _write_part(
    folder: Path, name: str, weights: Mapping[str, np.ndarray], *, layers: tuple[int, ...] = (),
    head_of: int | None = None, half: bool = False, onward: bool = False,
) -> GraphSpec:  # fmt: skip
    """Writes layers h' = relu(h w) and the head behind the last: logits = h' v, confidence = max softmax(logits)."""
    from onnx import TensorProto, helper, numpy_helper, save

    kind, dtype = (TensorProto.FLOAT16, "float16") if half else (TensorProto.FLOAT, "float32")
    last = layers[-1] if layers else head_of
    starts_at_image = bool(layers) and layers[0] == 0
    source = "image" if starts_at_image else f"h{layers[0] if layers else int(head_of or 0) + 1}"
    newest, nodes = source, []
    if starts_at_image:
        nodes, newest = [helper.make_node("Cast", ["image"], ["narrow"], to=kind)], "narrow"
    for layer in layers:
        nodes += [
            helper.make_node("MatMul", [newest, f"w{layer}"], [f"p{layer}"]),
            helper.make_node("Relu", [f"p{layer}"], [f"h{layer + 1}"]),
        ]
        newest = f"h{layer + 1}"
    nodes += [
        helper.make_node("MatMul", [newest, f"v{last}"], ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "axes"], ["confidence"], keepdims=0),
    ]
    inputs = (TensorSpec(name=source, dtype="float32" if starts_at_image else dtype,
                         row_shape=(IMAGE if starts_at_image else HIDDEN,)),)  # fmt: skip
    answers = (TensorSpec(name="logits", dtype="float32", row_shape=(CLASSES,)),
               TensorSpec(name="confidence", dtype="float32", row_shape=()))  # fmt: skip
    outputs = ((TensorSpec(name=newest, dtype=dtype, row_shape=(HIDDEN,)),) if onward else ()) + answers
    values = [
        [helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
                                       ["batch", *spec.row_shape]) for spec in some]
        for some in (inputs, outputs)
    ]  # fmt: skip
    constants = [numpy_helper.from_array(weights[key].astype(dtype), key) for key in
                 [*(f"w{layer}" for layer in layers), f"v{last}"]]  # fmt: skip
    constants.append(numpy_helper.from_array(np.array([-1], np.int64), "axes"))
    graph = helper.make_graph(nodes, name, values[0], values[1], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / f"{name}.onnx")
    return GraphSpec(name=name, file=f"{name}.onnx", inputs=inputs, outputs=outputs, confidence="confidence",
                     answers=("logits",))  # fmt: skip
