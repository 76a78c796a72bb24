"""Splitting: the cuts of a graph, chosen among the separators that running it proved, and the parts between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from artifacts import Cut, GraphError, GraphSpec, TensorSpec
from export.cuts.separators import CutPlace, find_places
from export.graphs.dataflow import describe_flow, find_whole_model
from export.graphs.files import finish_model
from export.graphs.loading import LoadedGraph
from export.graphs.outputs import check_answers
from export.graphs.probes.lines import BatchLine
from export.graphs.probing import Probe, probe_tensors
from export.graphs.surgery import add_constant, make_node, prepend_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPlace:
    """A separator that cannot serve as a cut, and the reason."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReport:
    """The cut report: how the cuts of a graph were found.

    Attributes:
        data_input: the input from which the separators were counted.
        separators: how many tensors every path from it passes, with heavy nodes before and behind.
        places: how many of them are left when those without a heavy node in between count once.
        refused: separators at which something crosses that cannot.
        notes: what was rewritten in the graph before.
    """

    data_input: str
    separators: int
    places: int
    refused: tuple[RefusedPlace, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutGraph:
    """A graph with its cuts.

    Attributes:
        cuts: in the order of the data flow.
        recomputed: cut name -> shape tensors that cross there and are computed again from the number of rows, and
            from their length where they have several.
        specs: every tensor that turned out to have the batch as leading axis.
        report: how the cuts were found.
    """

    cuts: tuple[Cut, ...]
    specs: Mapping[str, TensorSpec]
    report: CutReport
    recomputed: Mapping[str, Mapping[str, BatchLine]] = field(default_factory=dict)


def cut_graph(loaded: LoadedGraph, *, answers: Sequence[str], wanted: Sequence[str] | None = None) -> CutGraph:
    """Finds and proves the cuts of a graph.

    Args:
        loaded: the graph.
        answers: the outputs that the network answers with (``loaded`` may have more, those of exit heads for instance).
        wanted: main tensors that must be cuts, in order; ``None`` takes one for every place.

    Raises:
        GraphError: there is no cut, or a wanted tensor is not one; the message says why.
    """
    try:
        data_input, places = find_places(describe_flow(loaded.model.graph, tuple(answers)), wanted)
    except GraphError as error:
        if whole := find_whole_model(loaded.model.graph):
            raise GraphError(
                f"{error}. {whole} is a whole model in one operator, and rows can only leave between operators: it has "
                "no exits, and is exported without --segments"
            ) from error
        raise
    if wanted is not None:
        places = _pick_wanted(places, wanted)
    crossing = [name for place in places for name in (place.main, *place.carried, *place.recomputed)]
    probe = probe_tensors(loaded, crossing)
    check_answers(probe.led, answers)
    refused: list[RefusedPlace] = []
    sound: list[CutPlace] = []
    for place in places:
        reason = _why_refused(place, probe)
        if reason:
            refused.append(RefusedPlace(tensor=place.main, reason=reason))
        else:
            sound.append(place)
    if wanted is not None and refused:
        raise GraphError(f"'{refused[0].tensor}' is not a cut: {refused[0].reason}")
    if not sound:
        shown = "; ".join(f"at '{item.tensor}': {item.reason}" for item in refused[:3])
        raise GraphError(
            f"the graph has no cuts. Each of the {len(refused)} separators lets something cross that cannot: {shown}"
        )
    chosen = sound if wanted is not None else _smallest_per_place(sound, probe)
    return CutGraph(
        cuts=tuple(_make_cut(place, probe) for place in chosen),
        specs=probe.led,
        recomputed={
            place.main: {name: probe.lines[name] for name in place.recomputed if name not in probe.led}
            for place in chosen
        },
        report=CutReport(
            data_input=data_input,
            separators=len(places),
            places=len({place.place for place in places}),
            refused=tuple(refused),
            notes=loaded.notes,
        ),
    )


def _pick_wanted(places: Sequence[CutPlace], wanted: Sequence[str]) -> tuple[CutPlace, ...]:
    found = {place.main: place for place in places}
    for name in wanted:
        if name not in found:
            raise GraphError(f"'{name}' is not a cut: no heavy node lies before or behind it. Cuts: {', '.join(found)}")
    return tuple(found[name] for name in wanted)


def _why_refused(place: CutPlace, probe: Probe) -> str:
    for name in (place.main, *place.carried):
        if name not in probe.led:
            reason = probe.reasons.get(name, "does not depend on the values of the inputs")
            return f"'{name}' {reason}"
    main = probe.led[place.main]
    if np.dtype(main.dtype).kind != "f" and main.quantised is None:
        return f"'{place.main}' holds {main.dtype}, and exit heads read floating-point features"
    for name in place.recomputed:
        if name not in probe.led and name not in probe.lines:
            return f"'{name}', computed from shapes before the cut and read behind it, {probe.reasons[name]}"
        line = probe.lines.get(name)
        if line is not None and line.longer is not None and not probe.led[place.main].length_axes:
            return f"'{name}' follows the length of the rows, and '{place.main}' does not show that"
    return ""


def _make_cut(place: CutPlace, probe: Probe) -> Cut:
    crossing = [*place.carried, *(name for name in place.recomputed if name in probe.led)]
    return Cut(name=place.main, main=probe.led[place.main], carried=tuple(probe.led[name] for name in crossing))


def _smallest_per_place(sound: Sequence[CutPlace], probe: Probe) -> list[CutPlace]:
    best: dict[int, CutPlace] = {}
    for place in sound:
        rival = best.get(place.place)
        if rival is None or _row_bytes(_make_cut(place, probe)) <= _row_bytes(_make_cut(rival, probe)):
            best[place.place] = place
    return list(best.values())


def _row_bytes(cut: Cut) -> int:
    return sum(math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize for spec in cut.tensors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartOutline:
    """What is taken out of a graph as a part of its own.

    Attributes:
        name: of the part.
        available: tensors that it may read; those that it does not need are dropped.
        outputs: tensors that it writes; none of them may be available.
        answers, confidence: for the spec.
        lines: shape tensors that it may need, to be computed from the number of rows of ``main``.
        main: see ``lines``.
    """

    name: str
    available: Mapping[str, TensorSpec]
    outputs: Sequence[TensorSpec]
    answers: tuple[str, ...] = ()
    confidence: str | None = None
    lines: Mapping[str, BatchLine] = field(default_factory=dict)
    main: str = ""


def split_segments(
    loaded: LoadedGraph, cut: CutGraph, cuts: Sequence[Cut], ending: PartOutline
) -> list[tuple[ir.Model, GraphSpec]]:
    """Splits a graph along cuts.

    Args:
        loaded: the graph.
        cut: what ``cut_graph`` returned.
        cuts: some of its cuts, in order.
        ending: the final head, without what it may read.

    Returns:
        One model and its spec per cut, and the final head last. The specs' files are left empty.
    """
    parts = []
    available: dict[str, TensorSpec] = {spec.name: spec for spec in loaded.inputs}
    lines: Mapping[str, BatchLine] = {}
    main = ""
    for index, here in enumerate(cuts):
        made = [spec for spec in here.tensors if spec.name not in available]
        outline = PartOutline(
            name=f"segment_{index:02d}", available=available, outputs=made, lines=lines, main=main
        )  # fmt: skip
        parts.append(extract_part(loaded, outline))
        available = {spec.name: spec for spec in here.tensors}
        lines, main = cut.recomputed.get(here.name, {}), here.main.name
    parts.append(extract_part(loaded, replace(ending, available=available, lines=lines, main=main)))
    return parts


def extract_part(loaded: LoadedGraph, part: PartOutline) -> tuple[ir.Model, GraphSpec]:
    """Extracts what leads from some tensors to others; the spec's file is left empty."""
    readable = [*part.available, *part.lines]
    graph = ir.convenience.extract(loaded.model.graph, readable, [spec.name for spec in part.outputs])
    for value in list(graph.inputs):
        if (line := part.lines.get(value.name or "")) is not None:
            graph.inputs.remove(value)
            if value.uses():
                _recompute(graph, value, line, part.available[part.main])
        elif not value.uses():
            graph.inputs.remove(value)
    inputs = tuple(part.available[value.name] for value in graph.inputs if value.name)
    has_length = any(spec.length_axes for spec in (*inputs, *part.outputs))
    model = finish_model(graph, loaded.model, name=part.name, inputs=inputs, outputs=part.outputs)
    spec = GraphSpec(
        name=part.name, file="", inputs=inputs, outputs=tuple(part.outputs), answers=part.answers,
        confidence=part.confidence,
        lengths=() if loaded.sequence is None or not has_length else loaded.sequence.lengths,
    )  # fmt: skip
    return model, spec


def _recompute(graph: ir.Graph, value: ir.Value, line: BatchLine, main: TensorSpec) -> None:
    """Replaces a former input by ``offset + slope * rows of main``, and what comes on top for its length."""
    name = value.name or ""
    offset = add_constant(graph, f"{name}/offset", line.offset)
    if not line.slope.any() and line.longer is None:
        value.replace_all_uses_with(offset)
        return
    source = next(item for item in graph.inputs if item.name == main.name)
    slope = add_constant(graph, f"{name}/slope", line.slope)
    added: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], suffix: str, **attributes: int | ir.DataType) -> ir.Value:
        added.append(make_node(op, inputs, f"{name}/{suffix}", **attributes))
        return added[-1].outputs[0]

    def measure(axis: int, what: str, stem: str = "") -> ir.Value:
        scalar = add_constant(graph, f"{name}/{stem}scalar", np.array([], np.int64))
        size = add("Shape", [source], what, start=axis, end=axis + 1)
        count = add("Reshape", [size, scalar], f"{stem}count")
        return add("Cast", [count], f"{stem}cast", to=ir.DataType.from_numpy(line.slope.dtype))

    if line.longer is not None:
        length = measure(main.length_axes[0] + 1, "length", "length/")
        pairs = zip(("offset", "slope"), (offset, slope), line.longer, strict=True)
        offset, slope = (
            add("Add", [base, add("Mul", [length, add_constant(graph, f"{name}/{part}/more", more)], f"{part}/scaled")],
                f"{part}/longer")
            for part, base, more in pairs
        )  # fmt: skip
    scaled = add("Mul", [measure(0, "rows"), slope], "scaled")
    value.replace_all_uses_with(add("Add", [scaled, offset], "again"))
    prepend_nodes(graph, added)
