"""``python -m engines compare``: where two engines of one network part, and whether that moves decisions."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    EXIT_PLAN_JSON,
    ExitPlan,
    InputError,
    Model,
    ModelSpec,
    RunFolder,
    UsageError,
    find_run,
    load_arrays,
    open_model,
    read_json,
    to_plain,
)
from artifacts.console import print_table, say
from engines.backends.table import BACKENDS, DEFAULT_BACKEND, choose_backend
from engines.comparing.decisions import MovedDecisions, compare_decisions
from engines.comparing.runners import Side, find_maker
from engines.comparing.walking import TensorGap, walk

_SHOWN = 12


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "--against", required=True, metavar="BACKEND|PRECISION|RUN",
        help="another backend (openvino), bf16 (of OpenVINO), or the folder of another run with the same network, "
        "exported in another precision",
    )  # fmt: skip
    parser.add_argument("--engine", metavar="BACKEND", help=f"the reference (default: {DEFAULT_BACKEND})")
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE", help="an .npz of rows, one array per input (default: random rows)"
    )
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=1e-4, metavar="E",
        help="tensors part where their relative error is above it (default: %(default)s)",
    )  # fmt: skip


def compare_engines(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compares, prints the tables and returns the result for ``--json``."""
    if arguments.rows < 1:
        raise UsageError(f"--rows {arguments.rows}: expected at least 1")
    run = find_run(arguments.run)
    model = open_model(run.model, remedy=run.remedy("export"))
    backend = arguments.engine or DEFAULT_BACKEND
    find_maker(backend)
    other, other_model = _find_other(arguments.against, backend, model)
    first = Side(label=f"{run.name}, {backend}", backend=backend, onnx=model.path(model.spec.full))
    inputs = _read_rows(arguments.inputs, model.spec, arguments.rows)
    gaps = walk(first, other, inputs)
    moved = compare_decisions((model, other_model), (first, other), inputs, read_thresholds(run))
    parted = next((gap for gap in gaps if gap.error > arguments.limit), None)
    _print(first, other, gaps, moved, parted, arguments)
    return {
        "first": first.label, "second": other.label, "rows": len(next(iter(inputs.values()))), "limit": arguments.limit,
        "parted_at": None if parted is None else parted.tensor, "tensors": to_plain(gaps), "decisions": to_plain(moved),
    }  # fmt: skip


def _find_other(text: str, backend: str, model: Model) -> tuple[Side, Model]:
    """Returns the other side: another backend over the same file, or another run's file.

    Raises:
        UsageError: it is neither.
    """
    same = model.path(model.spec.full)
    if text in BACKENDS:
        find_maker(text)
        return Side(label=text, backend=text, onnx=same), model
    if text == "bf16":
        bf16, _ = choose_backend("openvino", text)
        return Side(label=bf16, backend=bf16, onnx=same), model
    if Path(text).is_dir():
        run = find_run(Path(text))
        there = open_model(run.model, remedy=run.remedy("export"))
        label = f"{run.name} ({there.spec.precision}), {backend}"
        return Side(label=label, backend=backend, onnx=there.path(there.spec.full)), there
    raise UsageError(
        f"--against {text}: expected a backend ({', '.join(BACKENDS)}), bf16, or the folder of a run. Another "
        f"precision is a network of its own: python -m export ... --precision {text} --run DIR, then --against DIR"
    )


def read_thresholds(run: RunFolder) -> dict[str, float]:
    """Returns exit -> threshold of the run's plan, where it has one; exits with a learned confidence are left out."""
    path = run.plan / EXIT_PLAN_JSON
    if not path.is_file():
        return {}
    plan = read_json(path, ExitPlan)
    return {exit_.cut: exit_.threshold for exit_ in plan.exits if exit_.cut not in plan.confidences}


def _read_rows(file: Path | None, spec: ModelSpec, count: int) -> dict[str, np.ndarray]:
    """Returns rows for every input: the first of a file's, or random ones.

    Raises:
        InputError: an array is missing, or does not fit.
        UsageError: the network takes integers, and there is no file.
    """
    if file is not None:
        return _check_rows(file, load_arrays(file), spec, count)
    random, rows = np.random.default_rng(0), {}
    for tensor in spec.full.inputs:
        kind = np.dtype(tensor.dtype)
        if kind.kind not in "fu" or tensor.length_axes:
            raise UsageError(
                f"the input '{tensor.name}' is {tensor.dtype} of {tensor.row_shape}: random rows would mean nothing. "
                "Save some with numpy.savez, one array per input, and name the file with --inputs"
            )
        shape = (count, *tensor.row_shape)
        rows[tensor.name] = (
            random.standard_normal(shape).astype(kind) if kind.kind == "f" else random.integers(0, 256, shape, kind)
        )
    say("random rows: what they decide says little of real ones; --inputs FILE takes some of yours")
    return rows


def _check_rows(file: Path, arrays: Mapping[str, np.ndarray], spec: ModelSpec, count: int) -> dict[str, np.ndarray]:
    rows = {}
    for tensor in spec.full.inputs:
        if tensor.name not in arrays:
            raise InputError(f"{file} lacks the input '{tensor.name}'; it holds {', '.join(arrays) or 'nothing'}")
        array = arrays[tensor.name]
        fits = array.ndim == len(tensor.row_shape) + 1 and len(array) and str(array.dtype) == tensor.dtype
        if not fits or (not tensor.length_axes and array.shape[1:] != tensor.row_shape):
            raise InputError(
                f"{file}: '{tensor.name}' is {array.dtype} {array.shape}; expected {tensor.dtype} (rows, "
                f"{', '.join(map(str, tensor.row_shape))})"
            )
        rows[tensor.name] = array[:count]
    return rows


def _print(
    first: Side, other: Side, gaps: list[TensorGap], moved: list[MovedDecisions], parted: TensorGap | None,
    arguments: argparse.Namespace,
) -> None:  # fmt: skip
    to_stderr = arguments.json == "-"
    worst = sorted(gaps, key=lambda gap: gap.risen, reverse=True)[:_SHOWN]
    places = {gap.tensor: place for place, gap in enumerate(gaps)}
    end = "nowhere"
    if parted is not None:
        end = f"at '{parted.tensor}' ({parted.operator}), tensor {places[parted.tensor] + 1}"
    print_table(
        f"{first.label} against {other.label}: {len(gaps)} tensors; they part {end} (relative error above "
        f"{arguments.limit:g}). Where the error rises most:",
        ("tensor", "operator", "place", "relative error", "risen by"),
        [(gap.tensor, gap.operator, places[gap.tensor] + 1, f"{gap.error:.1e}", f"{gap.risen:.1e}") for gap in worst],
        to_stderr=to_stderr,
    )
    if moved:
        print_table(
            "\nWhat decides, in engines with the outputs that they ship with:",
            ("exit", "largest error of a confidence", "rows with another class", "rows that leave on one side only"),
            [
                (each.exit, f"{each.confidence_error:.1e}", _share(each.classes_moved), _share(each.rows_moved))
                for each in moved
            ],
            to_stderr=to_stderr,
        )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
