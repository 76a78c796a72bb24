"""The command ``python -m export``: a network becomes ``full.onnx`` and, with ``--segments``, its parts."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import CONVENTIONS, PRECISIONS, TASKS, MissingExtraError, UsageError, find_run, to_plain
from artifacts.console import add_common_arguments, print_table, run_command, say
from export.nets.table import FAMILIES, HEAD_KINDS, HEADS, TOKEN_HEAD_KINDS, NetConfig, find_family
from export.options import ANSWERS, CALIBRATED, INPUTS, LENGTH, ExportOptions, is_import

if TYPE_CHECKING:
    from export.folder.pipeline import ExportResult
    from export.nets.family import Family

SOURCE_HELP = (
    "a family's name; any ONNX file; torch:package.module:factory, what makes a torch module; hf:DIR, a classifier of "
    "images or texts as Hugging Face saves it"
)
_DEFAULTS = ExportOptions()
_OF_IMAGES = "input_shape"  # the option of a family that the flag --input-shape gives
_OF_TEXTS = "length"  # and the one of --length


def make_parser(family: Family | None = None) -> argparse.ArgumentParser:
    """Builds the command line's parser, with the options of a family."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a network, find where it can be cut, and write its segments, final head and exit heads.",
        epilog=f"Families: {', '.join(FAMILIES)}; for the options of one: python -m export FAMILY --help",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    add_common_arguments(parser)
    parser.add_argument("--segments", action="store_true", help="also cut the network; without: full.onnx alone")
    parser.add_argument(
        "--confidence", dest="recipe", metavar="NAME",
        help="of a family: how sure an answer is, by one of the recipes of its task (default: the task's; "
        "python -m calibration --confidence auto chooses)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DATA", help="of --precision int8: the data whose train part it is calibrated on "
        "(docs/data.md; default: Fashion-MNIST where it fits the network)",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="NAME", help=f"what the answers mean: {', '.join(TASKS)} (default: classification)"
    )
    add_network_flags(parser, family)
    return parser


def add_network_flags(parser: argparse.ArgumentParser, family: Family | None = None) -> None:
    """Adds the flags that say how a network becomes the model of a run, those of a family among them."""
    parser.add_argument("--name", help="name of the run in runs/ (default: the family's, or the file's)")
    parser.add_argument("--every", type=int, metavar="K", help="keep every K-th cut as an exit candidate")
    parser.add_argument(
        "--head", choices=HEAD_KINDS,
        help=f"architecture of untrained exit heads; {' and '.join(TOKEN_HEAD_KINDS)} are for networks of tokens "
        f"(default: as the weights were trained, else {HEADS[0]} or {TOKEN_HEAD_KINDS[0]})",
    )  # fmt: skip
    parser.add_argument(
        "--input-shape", action="append", default=[], metavar="[NAME:]C,H,W",
        help="shape of one row; NAME: names one of several inputs, or one whose shape an ONNX file leaves open",
    )  # fmt: skip
    parser.add_argument(
        "--precision", metavar="|".join(PRECISIONS),
        help="what the network computes in; its inputs, answers and confidences stay float32, with int8 the exit heads "
        "too; int8 is calibrated on --data, and int8-symmetric is its form for TensorRT "
        f"(default: {_DEFAULTS.precision})",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default=_DEFAULTS.weights, metavar="FILE|DIR|pretrained|random",
        help="of a family or a torch module: a .safetensors, .pth or .pt file; of bert also a folder of Hugging "
        "Face, or minilm, which is fetched (84 MB); pretrained: those that ship with PAME, "
        "or that the factory loads; random: of a family, none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--preprocess", metavar="NAME|FILE",
        help=f"how the network wants its images: {', '.join(found.name for found in CONVENTIONS)}, or a JSON file "
        "(default: as the file, its neighbours or the weights' recipe say; docs/preprocessing.md)",
    )  # fmt: skip
    parser.add_argument(
        "--answers", choices=tuple(ANSWERS),
        help="of dense networks: classes of pixels and keypoints are found inside the network, and are a hundredth of "
        "the bytes of logits and heat maps (default: classes, heatmaps)",
    )  # fmt: skip
    parser.add_argument(
        "--input", default=_DEFAULTS.input, metavar="|".join(INPUTS),
        help="uint8: the network scales and normalises images itself and takes bytes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--lengths", type=_read_lengths, default=_DEFAULTS.lengths, metavar="L,L,...",
        help="the lengths to build engines for, of a network whose rows have several: rows are padded to the next one "
        "(default: all rows have one shape)",
    )  # fmt: skip
    group = parser.add_argument_group("networks of tokens")
    group.add_argument("--length", type=int, metavar="TOKENS", help=f"tokens of a row (default: {LENGTH})")
    group.add_argument(
        "--tokenizer", metavar="FILE", help="its tokenizer.json (default: the one beside the weights or the file)"
    )
    if family is not None:
        group = parser.add_argument_group(f"the family {family.name}")
        for field in _own_options(family):
            group.add_argument(
                f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default,
                help=f"{field.metadata['help']} (default: %(default)s)",
            )  # fmt: skip


def _own_options(family: Family) -> list[dataclasses.Field[Any]]:
    config: Any = family.config()
    return [field for field in dataclasses.fields(config) if field.name not in (_OF_IMAGES, _OF_TEXTS)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        family = find_wanted_family(given, make_parser)
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    arguments = make_parser(family).parse_args(given)
    return run_command(lambda parsed: _export(parsed, family), arguments)


def find_wanted_family(
    argv: Sequence[str], parser_for: Callable[[Family | None], argparse.ArgumentParser]
) -> Family | None:
    """Returns the family that is the source on a command line; its options decide how the line is read."""
    for name in FAMILIES:
        if name in argv:
            family = find_family(name)
            if parser_for(family).parse_known_args(argv)[0].source == name:
                return family
    return None


def _export(arguments: argparse.Namespace, family: Family | None) -> dict[str, Any]:
    options = read_options(arguments, family)
    if arguments.data is not None and options.precision not in CALIBRATED:
        raise UsageError(f"--data {arguments.data}: an export reads data for --precision int8 alone; omit the flag")
    run = find_run(arguments.run, name=read_name(arguments, options))
    try:
        from export.sources import export_model

        if options.precision in CALIBRATED:
            from calibration import rows_of  # data is its matter: what this command alone asks it for

            options = dataclasses.replace(options, rows=rows_of(options.data, report=say))
        result = export_model(run, options, report=say)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"artifacts", "calibration", "engines", "export"}:
            raise
        raise MissingExtraError(package, options.extra) from error
    return _show(result)


def read_options(arguments: argparse.Namespace, family: Family | None) -> ExportOptions:
    """Turns parsed arguments into options; two forms of ``--input-shape`` share one flag.

    Raises:
        UsageError: there is no such family, or a flag does not fit the source.
    """
    if family is None and not is_import(arguments.source):
        if Path(arguments.source).exists():
            raise UsageError(
                f"{arguments.source} is not a network as it can be read: expected a file that ends in .onnx; "
                "hf:DIR for a folder of Hugging Face; torch:package.module:factory with --weights FILE for weights"
            )
        find_family(arguments.source)  # which says that there is no such family
    shapes = dict(_read_shape(text) for text in arguments.input_shape)
    return ExportOptions(
        source=arguments.source, segments=arguments.segments, weights=arguments.weights, every=arguments.every,
        net=None if family is None else _read_config(arguments, family, shapes.pop("", None)),
        head=arguments.head, precision=arguments.precision or _DEFAULTS.precision, input_shapes=shapes,
        preprocess=arguments.preprocess, input=arguments.input, lengths=arguments.lengths,
        tokenizer=arguments.tokenizer, length=arguments.length,
        data=arguments.data if arguments.precision in CALIBRATED else None,
        answers=arguments.answers, confidence=getattr(arguments, "recipe", None),
        task=None if ":" in (arguments.task or "") else arguments.task,  # the user's own judges, and exports nothing
    )  # fmt: skip


def read_command(words: Sequence[str]) -> ExportOptions:
    """Returns the options of a recorded export.

    Args:
        words: of its command line, from the source on.
    """
    family = find_wanted_family(words, make_parser)
    return read_options(make_parser(family).parse_args(words), family)


def read_name(arguments: argparse.Namespace, options: ExportOptions) -> str:
    """Returns the name of the run that an export goes into.

    Raises:
        UsageError: ``--name`` is no name of a folder.
    """
    name = arguments.name or options.run_name
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: expected a plain name, which becomes a folder in runs/")
    return str(name)


def _read_config(
    arguments: argparse.Namespace, family: Family, input_shape: tuple[int, ...] | None
) -> NetConfig:  # fmt: skip
    own: dict[str, Any] = {field.name: getattr(arguments, field.name) for field in _own_options(family)}
    if input_shape is not None:
        if len(input_shape) != 3:
            text = ",".join(map(str, input_shape))
            raise UsageError(f"--input-shape {text}: expected channels,height,width, e.g. 1,28,28")
        own[_OF_IMAGES] = input_shape
    length = arguments.length or max(arguments.lengths, default=None)
    if length is not None:
        own[_OF_TEXTS] = length
    config: Any = family.config()
    if unknown := {_OF_IMAGES, _OF_TEXTS} & set(own) - {field.name for field in dataclasses.fields(config)}:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unknown))
        if _OF_TEXTS in unknown and arguments.lengths:
            flags = flags.replace("--length", "--lengths")
        raise UsageError(f"{flags}: the family {family.name} has no such option")
    return family.config(**own)


def _read_shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.rpartition(":")
    try:
        shape = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input-shape {text}: expected sizes from 1, as in 3,224,224 or input:3,224,224")
    return name, shape


def _read_lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected ascending numbers from 1, e.g. 16,32,64") from error


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
    for note in () if result.cut_report is None else result.cut_report.notes:
        print(f"note: {note}")
    for line in parity_lines(result):
        print(line)
    return {
        "model": spec.name, "family": spec.family, "task": spec.task, "folder": str(model.artifact.folder),
        "digest": model.digest, "reused": result.reused, "cuts": cuts, "settings": dict(spec.settings),
        "precision": spec.precision, "preprocessing": to_plain(spec.stated_preprocessing()),
        "parity": to_plain(result.parity), **({"lengths": spec.lengths} if spec.lengths else {}),
    }  # fmt: skip


def parity_lines(result: ExportResult) -> list[str]:
    """Returns the lines that say how far the parts are from the whole, and the whole from its source."""
    parity, lines = result.parity, []
    if parity.chain:
        errors = ", ".join(
            f"{item.max_relative:.1e} at batch {item.batch_size}" + f" and length {item.length}" * bool(item.length)
            for item in parity.chain
        )
        lines.append(
            f"parity: chained segments against full.onnx, relative error {errors} (limit {parity.tolerance:.0e})"
        )
    if parity.is_weak:
        lines.append(
            f"parity: weak, since random inputs move the outputs by only {parity.sensitivity:.0e} of their magnitude"
        )
    if parity.int8 is not None:
        lines.append(parity.int8.describe())
    elif parity.precision_relative:
        lines.append(f"precision: against the network in fp32, relative error {parity.precision_relative:.1e}")
    if parity.source:
        lines.append(f"parity: full.onnx against {parity.source}, relative error {parity.source_relative:.1e}")
    return lines
