"""``python -m export resnet --segments``: a network becomes ``full.onnx`` and, with ``--segments``, its parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import PRECISIONS, MissingExtraError, UsageError, find_run, to_plain
from artifacts.console import add_common_arguments, print_table, run_command
from export.options import FAMILIES, HEADS, LATER_FAMILIES, ExportOptions

if TYPE_CHECKING:
    from export.folder.pipeline import ExportResult

_DEFAULTS = ExportOptions()


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a network, find where it can be cut, and write its segments, final head and exit heads.",
        epilog=f"Families: {', '.join(FAMILIES)}. Not available yet: {', '.join(LATER_FAMILIES)}.",
    )
    parser.add_argument("source", metavar="FAMILY|FILE.onnx", help="a family's name, or any ONNX file")
    add_common_arguments(parser)
    parser.add_argument("--segments", action="store_true", help="also cut the network; without: full.onnx alone")
    parser.add_argument("--name", help="name of the run in runs/ (default: the family's, or the file's)")
    parser.add_argument("--every", type=int, metavar="K", help="keep every K-th cut as an exit candidate")
    parser.add_argument(
        "--head", choices=HEADS,
        help=f"architecture of untrained exit heads (default: as the weights were trained, else {HEADS[0]})",
    )  # fmt: skip
    parser.add_argument(
        "--input-shape", action="append", default=[], metavar="[NAME:]C,H,W",
        help="shape of one row; with NAME: for inputs whose shape an ONNX file leaves open",
    )  # fmt: skip
    parser.add_argument(
        "--precision", default=_DEFAULTS.precision, metavar="|".join(PRECISIONS),
        help="what the network computes in; its inputs, answers and confidences stay float32 (default: %(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("families")
    group.add_argument("--depth", type=int, default=_DEFAULTS.depth, help="which ResNet (default: %(default)s)")
    group.add_argument(
        "--classes", type=int, default=_DEFAULTS.classes, help="number of classes (default: %(default)s)"
    )
    group.add_argument(
        "--weights", default=_DEFAULTS.weights, metavar="FILE|pretrained|random",
        help="a .safetensors or .pth file, the weights that ship with PAME, or none (default: %(default)s)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_export, make_parser().parse_args(argv))


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    options = read_options(arguments)
    name = arguments.name or (Path(options.source).stem if options.is_file else options.source)
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: expected a plain name, which becomes a folder in runs/")
    run = find_run(arguments.run, name=name)
    try:
        from export.folder.pipeline import export_model

        result = export_model(run, options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"artifacts", "engines", "export"}:
            raise
        raise MissingExtraError(package, "export" if options.is_file else "train") from error
    return _show(result)


def read_options(arguments: argparse.Namespace) -> ExportOptions:
    """Turns parsed arguments into options; two forms of ``--input-shape`` share one flag."""
    is_file = arguments.source.endswith(".onnx")
    shapes = dict(_read_shape(text) for text in arguments.input_shape)
    extra: dict[str, Any] = {"input_shapes": shapes}
    if not is_file and "" in shapes:
        shape = shapes.pop("")
        if len(shape) != 3:
            raise UsageError(f"--input-shape {','.join(map(str, shape))}: expected channels,height,width, e.g. 1,28,28")
        extra["input_shape"] = shape
    return ExportOptions(
        source=arguments.source, segments=arguments.segments, depth=arguments.depth, classes=arguments.classes,
        weights=arguments.weights, every=arguments.every, head=arguments.head,
        precision=arguments.precision, **extra,
    )  # fmt: skip


def _read_shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.rpartition(":")
    try:
        shape = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input-shape {text}: expected sizes from 1, as in 3,224,224 or input:3,224,224")
    return name, shape


def _show(result: ExportResult) -> dict[str, Any]:
    model, spec = result.model, result.model.spec
    last = len(spec.cuts) - 1
    cuts = [
        {
            "name": cut.name,
            "row_shape": cut.main.row_shape,
            "carried": [tensor.name for tensor in cut.carried],
            "candidate": index < last,
            "head": cut.name in spec.heads,
        }
        for index, cut in enumerate(spec.cuts)
    ]
    if cuts:
        rows = [
            [cut.name, "x".join(map(str, cut.main.row_shape)), ", ".join(tensor.name for tensor in cut.carried) or "-",
             "yes" if index < last else "no (last)", "yes" if cut.name in spec.heads else "no"]
            for index, cut in enumerate(spec.cuts)
        ]  # fmt: skip
        title = f"{spec.name}: {len(spec.segments)} segments and a final head in {model.artifact.folder}"
        print_table(title, ["cut", "row", "carried", "candidate", "has head"], rows)
    else:
        print(f"{spec.name}: the whole network in {model.path(spec.full)}")
    for line in parity_lines(result):
        print(line)
    return {
        "model": spec.name, "family": spec.family, "task": spec.task, "folder": str(model.artifact.folder),
        "digest": model.digest, "reused": result.reused, "cuts": cuts, "settings": dict(spec.settings),
        "precision": spec.precision, "parity": to_plain(result.parity),
    }  # fmt: skip


def parity_lines(result: ExportResult) -> list[str]:
    """Returns the lines that say how far the parts are from the whole, and the whole from its source."""
    parity, lines = result.parity, []
    if parity.chain:
        errors = ", ".join(f"{item.max_relative:.1e} at batch {item.batch_size}" for item in parity.chain)
        lines.append(
            f"parity: chained segments against full.onnx, relative error {errors} (limit {parity.tolerance:.0e})"
        )
    if parity.is_weak:
        lines.append(
            f"parity: weak, since random inputs move the outputs by only {parity.sensitivity:.0e} of their magnitude"
        )
    if parity.precision_relative:
        lines.append(f"precision: against the network in fp32, relative error {parity.precision_relative:.1e}")
    if parity.source:
        lines.append(f"parity: full.onnx against {parity.source}, relative error {parity.source_relative:.1e}")
    return lines
