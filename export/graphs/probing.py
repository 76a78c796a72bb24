"""Probing: a graph is run to prove which tensors have the batch as leading axis and independent rows.

A graph says little about this by itself: shapes may be missing or stale, and a reduction over the batch looks like any
other. So the candidate tensors are made outputs, and the graph is run on random rows, two and three at a time and each
row alone. A tensor passes if its leading axis follows the batch, the rest of its shape stays, and every row is the same
in each run up to rounding.

Rows may be independent on some inputs and mix on others: a network that divides by the brightest pixel of the batch,
where that is more than 1, is found out only by images of 0 to 255, a dark one among them. So the rows span the range
that the preprocessing says; where nobody says anything, an input that may be an image is run on noise, on pixels of
0 to 1 and on those of 0 to 255.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from artifacts import EngineError, GraphError, Preprocessing, TensorSpec
from engines import GraphRunner
from export.graphs.files import PROTO_LIMIT, save_graph, weight_bytes
from export.graphs.loading import LoadedGraph
from export.graphs.number_formats import find_quantised
from export.graphs.probes.lengths import Verdict, binary_mask, join_lengths, padded_pairs, shorten_rows
from export.graphs.probes.lines import BatchLine, fit_line, is_same_line
from export.graphs.ranges import assume_pixels, draw_images, plain_image

# relative; rounding of one float16 is 5e-4, of one bfloat16 4e-3, a step of int8 8e-3, and a network adds them up
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
TOLERANCE = TOLERANCES["fp32"]
_PROBED = 3
_SAMPLED = 8
_FAR = 100
_BYTE = 255
_SLACK = 100  # of the limit, for rounding on values that the network may not be made for
_BFLOAT16 = "tensor(bfloat16)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The findings of a run with intermediate tensors as outputs.

    Attributes:
        led: tensors that have the batch as leading axis and independent rows.
        lines: of the others, those that depend on the number of rows only, and linearly.
        reasons: of the rest, why they cannot cross a cut.
    """

    led: Mapping[str, TensorSpec]
    lines: Mapping[str, BatchLine]
    reasons: Mapping[str, str]


def sample_rows(
    specs: Iterable[TensorSpec], count: int, *, seed: int = 0, highest: int = 1, pixels: Preprocessing | None = None
) -> dict[str, np.ndarray]:
    """Draws random inputs: name -> (count, ...).

    Where ``pixels`` says how the only input is made of images, random images are drawn and prepared: the first nearly
    black, the second usual, the third bright, others of any brightness and contrast.

    Floats are normal; each row has a mean and a spread of its own, so that networks that average over positions still
    tell the rows apart. Booleans are 0 or 1, integers 0 to ``highest``: 1 is a valid token, position, segment and mask
    alike. The first entry of each row is 1, so that no mask hides a whole row.
    """
    random = np.random.default_rng(seed)
    rows = {}
    for spec in specs:
        if pixels is not None:
            rows[spec.name] = pixels.prepare(draw_images(random, (count, *spec.row_shape)), spec.dtype)
            continue
        shape, dtype = (count, *spec.row_shape), np.dtype(spec.dtype)
        if dtype.kind in "biu":
            top = 1 if dtype.kind == "b" else min(highest, int(np.iinfo(dtype).max))
            tops = np.full((count, *([1] * len(spec.row_shape))), top)
            tops[1::3], tops[2::3] = max(1, top // 64), max(1, top // 2)  # so that rows have ranges of their own
            numbers = random.integers(0, tops + 1, shape)
            numbers.reshape(count, -1)[:, 0] = 1
            rows[spec.name] = numbers.astype(dtype)
        else:
            own = (count, *([1] * len(spec.row_shape)))
            noise = random.standard_normal(shape, dtype=np.float32) * random.uniform(0.5, 1.5, own)
            rows[spec.name] = (noise + random.normal(0, 0.5, own)).astype(dtype)
    return rows


def relative_error(found: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Returns the largest absolute difference, and that relative to the largest magnitude of the reference.

    Of integers, such as the classes of pixels, no difference is small: theirs is the share of values that differ.
    Infinities and NaN must sit at the same places; otherwise, or for different shapes, both errors are infinite.
    """
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return float("inf"), float("inf")
    if found.size == 0:
        return 0.0, 0.0
    a, b = found.astype(np.float64), reference.astype(np.float64)
    if reference.dtype.kind in "iub":
        return float(np.abs(a - b).max()), float((a != b).mean())
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf"), float("inf")
    if not finite.any():
        return 0.0, 0.0
    absolute = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(b[finite]).max())
    if absolute == 0:
        return 0.0, 0.0
    return absolute, absolute / scale if scale > 0 else float("inf")


def settle_integers(loaded: LoadedGraph) -> LoadedGraph:
    """Returns the graph with the range of integers on which its rows turn out to be independent.

    Integers of 8 bits are tried as bytes first, others as 0 and 1. A network that reads bytes as int32 may react so
    little to 0 and 1 that rounding looks like rows that mix. Where the input is known to be an image, its range is.
    """
    if loaded.pixels is not None:
        return loaded
    kinds = [np.dtype(spec.dtype) for spec in loaded.inputs if np.dtype(spec.dtype).kind in "iu"]
    if not kinds:
        return loaded
    image = plain_image(loaded)
    order = (_BYTE, 1) if image is not None or all(kind.itemsize == 1 for kind in kinds) else (1, _BYTE)
    for highest in order:
        trial = replace(loaded, highest=highest, pixels=image if highest == _BYTE else None)
        with contextlib.suppress(GraphError):
            probe_tensors(trial, ())
            note = () if highest == 1 else (f"integer inputs run with 0 to {highest}",)
            return replace(trial, notes=(*loaded.notes, *note))
    return loaded


def draw_rows(loaded: LoadedGraph, count: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws random inputs for a graph, as ``sample_rows``; the mask of a sequence is 0 or 1."""
    rows = sample_rows(loaded.inputs, count, seed=seed, highest=loaded.highest, pixels=loaded.pixels)
    return rows if loaded.sequence is None else binary_mask(rows, loaded.sequence.mask)


def probe_tensors(loaded: LoadedGraph, names: Sequence[str], *, seed: int = 0) -> Probe:
    """Runs a graph with some of its tensors as outputs and tells which of them may cross a cut.

    Args:
        loaded: the graph; left as it is.
        names: tensors to look at, graph inputs among them; the graph's own outputs are added.
        seed: decides the random rows.

    Raises:
        GraphError: the graph does not run with two or three rows, or an output fails: then the network cannot be
            served in batches at all.
    """
    made = [name for name in dict.fromkeys([*loaded.outputs, *names]) if name not in _input_names(loaded)]
    reasons: dict[str, str] = {}
    with open_graph(expose_tensors(loaded.model, made)) as runner:
        for name in [name for name in made if runner.output_types[name] == _BFLOAT16]:
            made.remove(name)
            reasons[name] = "is bfloat16, which engines do not hand over"
        verdicts = [_judge_lengths(runner, loaded, made, draw) for draw in _draws(loaded, seed)]
    led = {spec.name: spec for spec in loaded.inputs}
    quantised = find_quantised(loaded.model.graph)
    lines: dict[str, BatchLine] = {}
    for name in made:
        found = [verdict[name] for verdict in verdicts]
        first, reason = found[0], next((other for other in found if isinstance(other, str)), "")
        if reason or not all(_is_same(first, other) for other in found[1:]):
            reasons[name] = reason or "has another shape or other values for other inputs"
        elif isinstance(first, TensorSpec):
            led[name] = replace(first, quantised=quantised.get(name))
        elif isinstance(first, BatchLine):
            lines[name] = first
    for name in loaded.outputs:
        if name not in led:
            reason = reasons.get(name, "does not depend on the inputs' values")
            raise GraphError(
                f"the network cannot be served in batches: its output '{name}' {reason}{_say_copy(loaded, led)}"
            )
    return Probe(led=led, lines=lines, reasons=reasons)


def _say_copy(loaded: LoadedGraph, led: Mapping[str, TensorSpec]) -> str:
    """Returns how to leave off outputs that cannot be served, a loss for instance, where others can."""
    good = [name for name in loaded.outputs if name in led]
    if not good:
        return ""
    inputs = [spec.name for spec in loaded.inputs]
    return f". If that is no answer, save a copy without it: onnx.utils.extract_model(file, copy, {inputs}, {good})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Draw:
    """Random rows of one range.

    Attributes:
        rows: input name -> (3, ...).
        assumed: the range in words, where nothing says that the network is made for it.
    """

    rows: Mapping[str, np.ndarray]
    assumed: str = ""


def _draws(loaded: LoadedGraph, seed: int) -> Iterator[_Draw]:
    """Yields rows of every range that the inputs may have."""
    yield _Draw(rows=draw_rows(loaded, _PROBED, seed=seed))
    for words, pixels in assume_pixels(loaded):
        yield _Draw(rows=draw_rows(replace(loaded, pixels=pixels), _PROBED, seed=seed), assumed=words)


def _judge_lengths(runner: GraphRunner, loaded: LoadedGraph, names: Sequence[str], draw: _Draw) -> dict[str, Verdict]:
    """As ``_judge_rows``, at every length, with the proof that padding does not show in the outputs."""
    if loaded.sequence is None:
        return _judge_rows(runner, loaded, names, draw)
    by_length = {
        length: _judge_rows(runner, loaded, names, replace(draw, rows=shorten_rows(draw.rows, loaded.inputs, length)))
        for length in loaded.sequence.lengths
    }
    for words, rows, padded in padded_pairs(draw.rows, loaded.inputs, loaded.sequence):
        expected, found = (run_rows(runner, given, loaded, loaded.outputs) for given in (rows, padded))
        for name in loaded.outputs:
            _, error = relative_error(found[name], expected[name])
            if error > TOLERANCES[loaded.rounding] and expected[name].shape == found[name].shape:
                raise GraphError(
                    f"--lengths: rows {words} have another output '{name}', by {error:.1e} of its magnitude, though "
                    f"'{loaded.sequence.mask}' is 0 there: the network reads its padding, so a row's answer would "
                    "depend on its neighbours. Mask the padding wherever positions meet, or leave --lengths out"
                )
    return {name: join_lengths({length: found[name] for length, found in by_length.items()}) for name in names}


def _is_same(a: Verdict, b: Verdict) -> bool:
    if isinstance(a, BatchLine) and isinstance(b, BatchLine):
        return is_same_line(a, b)
    return a == b


def _judge_rows(runner: GraphRunner, loaded: LoadedGraph, names: Sequence[str], draw: _Draw) -> dict[str, Verdict]:
    """Runs rows together and alone: a tensor is led by the batch, a line of the number of rows, or neither for a
    reason."""
    rows = draw.rows
    whole = run_rows(runner, rows, loaded, names)
    pair = run_rows(runner, {name: array[:2] for name, array in rows.items()}, loaded, names)
    singles = [
        run_rows(runner, {name: array[i : i + 1] for name, array in rows.items()}, loaded, names)
        for i in range(_PROBED)
    ]
    limit = TOLERANCES[loaded.rounding] * (_SLACK if draw.assumed else 1)
    found: dict[str, Verdict] = {}
    for name in names:
        runs = [singles[0][name], pair[name], whole[name]]
        alone = [single[name] for single in singles]
        reason = _why_not_led(runs) or _why_mixed(whole[name], pair[name], alone, limit=limit)
        line = fit_line(runs) if reason else None
        if not reason:
            row_shape = tuple(whole[name].shape[1:])
            found[name] = TensorSpec(name=name, dtype=str(whole[name].dtype), row_shape=row_shape)
        elif line is not None:
            found[name] = line
        else:
            known = f" (on {draw.assumed}; if the network takes others, say so with --preprocess)" * bool(draw.assumed)
            found[name] = reason + known
    return found


def sample_answers(loaded: LoadedGraph, names: Sequence[str], *, seed: int = 3) -> dict[str, np.ndarray]:
    """Returns the values of some outputs on random rows, usual and far-out ones; rows that overflow are left out.

    The far-out rows bring logits out of ranges in which they may lie by chance.

    Args:
        loaded: the graph.
        names: of its outputs.
        seed: decides the random rows.

    Raises:
        GraphError: the graph does not run with several rows.
    """
    usual = draw_rows(loaded, _SAMPLED, seed=seed)
    far = {name: array * array.dtype.type(_FAR) if array.dtype.kind == "f" else array for name, array in usual.items()}
    with open_graph(loaded.model) as runner:
        runs = [run_rows(runner, rows, loaded, names) for rows in (usual, far)]
    found = {}
    for name in names:
        values = runs[0][name]
        if values.ndim > 0 and values.dtype.kind == "f" and values.shape == runs[1][name].shape:
            values = np.concatenate([run[name] for run in runs])
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            values = values[finite] if finite.any() else values
        found[name] = values
    return found


def open_graph(model: ir.Model) -> GraphRunner:
    """Opens a graph in memory on ONNX Runtime, through a file where it is too large for one message."""
    if weight_bytes(model) < PROTO_LIMIT:
        return GraphRunner(ir.to_proto(model).SerializeToString())
    with tempfile.TemporaryDirectory(prefix="pame-") as folder:
        path = Path(folder) / "graph.onnx"
        save_graph(model, path)
        return GraphRunner(path)


def _input_names(loaded: LoadedGraph) -> set[str]:
    return {spec.name for spec in loaded.inputs}


def expose_tensors(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Returns a copy of a model with some of its tensors as its outputs."""
    exposed = model.clone()
    values = ir.convenience.create_value_mapping(exposed.graph, include_subgraphs=False)
    exposed.graph.outputs[:] = [values[name] for name in names]
    return exposed


def run_rows(
    runner: GraphRunner, rows: Mapping[str, np.ndarray], loaded: LoadedGraph, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Runs a loaded graph on some rows.

    Raises:
        GraphError: it does not run with so many, or one of the outputs is no tensor of numbers.
    """
    count = len(next(iter(rows.values())))
    try:
        found = runner.run(rows, outputs=outputs)
    except EngineError as error:
        if loaded.sequence is not None:
            raise GraphError(
                f"the network does not run at the lengths {','.join(map(str, loaded.sequence.lengths))}: {error}. "
                "Choose --lengths that it has positions for, up to what it was trained with"
            ) from error
        if loaded.fixed_batch is None:
            raise GraphError(f"the network does not run with {count} rows: {error}") from error
        raise GraphError(
            f"the network insists on batch {loaded.fixed_batch} in a way that cannot be rewritten: with {count} rows, "
            f"{error}. Export it again with a dynamic batch axis"
        ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            kind = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
            raise GraphError(
                f"the network's tensor '{name}' is not a tensor of numbers ({kind}). Save a copy of the network that "
                "ends before it: onnx.utils.extract_model(file, copy, inputs, outputs)"
            )
    return found


def _why_not_led(runs: Sequence[np.ndarray]) -> str:
    """``runs[i]`` came from ``i + 1`` rows."""
    for count, array in enumerate(runs, start=1):
        if array.ndim == 0 or array.shape[0] != count:
            return f"has shape {array.shape} for {count} rows: its leading axis is not the batch"
    if len({array.shape[1:] for array in runs}) > 1:
        return f"has rows whose shape changes with the batch: {runs[0].shape[1:]} for 1 row, {runs[-1].shape[1:]} for 3"
    return ""


def _why_mixed(whole: np.ndarray, pair: np.ndarray, singles: Sequence[np.ndarray], *, limit: float) -> str:
    for row, single in enumerate(singles):
        for count, array in ((len(whole), whole), (len(pair), pair)):
            if row >= count:
                continue
            _, error = relative_error(array[row : row + 1], single)
            if error > limit:
                return (
                    f"mixes rows: row {row} of a batch of {count} differs by {error:.1e} of its magnitude from the "
                    "same row alone"
                )
    return ""
