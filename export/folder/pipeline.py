"""The export pipeline: a loaded graph is converted, given its confidences, cut, written and proved."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from artifacts import (
    NO_EXITS,
    NO_TASK,
    PRECISIONS,
    SAID_BY,
    GraphError,
    Model,
    RunFolder,
    TensorSpec,
    UsageError,
    find_task,
    open_scratch,
    read_json,
)
from export.answers.small import make_small
from export.confidence.adding import add_confidence, find_recipe
from export.confidence.choice import (
    ends_linear,
    find_terms,
    flatten_answer,
    is_yes_or_no,
    why_no_choice,
    widen_yes_or_no,
)
from export.cuts.parity import PARITY_JSON, ParityReport
from export.cuts.splitting import CutGraph, CutReport, cut_graph
from export.cuts.thinning import thin_cuts
from export.folder.recipe import CONFIDENCE, ExportRecipe
from export.folder.writing import CUTS_JSON, Blueprint, Part, open_run_model, write_model
from export.graphs.files import load_graph_file
from export.graphs.loading import LoadedGraph
from export.graphs.outputs import check_answers
from export.graphs.probing import probe_tensors, sample_answers
from export.options import CALIBRATED
from export.pixels.taking_bytes import take_bytes
from export.precision.int8 import LEAST_ROWS
from export.precision.passes import PassRequest, apply_precision

_ROWS = 1536
_ROW_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The result of an export.

    Attributes:
        model: the model folder.
        parity: its parity report.
        cut_report: how its cuts were found; ``None`` where there are none.
        reused: it was there already, made from the same inputs.
    """

    model: Model
    parity: ParityReport
    cut_report: CutReport | None
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decided:
    """A graph with the confidences of its answers.

    Attributes:
        loaded: the graph.
        terms: of the network's answer, ``logits`` or ``probabilities``; ``None``: no confidence can be computed.
        confidence: the output with the confidence of the network's answer.
        heads: cut name -> the outputs with the answer and the confidence of its exit head.
        answers: the outputs that the network answers with.
        reason: why no confidence can be computed.
    """

    loaded: LoadedGraph
    terms: str | None = None
    confidence: str | None = None
    heads: dict[str, tuple[str, str]]
    answers: tuple[str, ...]
    reason: str = ""


def publish_model(run: RunFolder, loaded: LoadedGraph, recipe: ExportRecipe) -> ExportResult:
    """Turns a loaded graph into the model folder of a run.

    Args:
        run: the run's folder.
        loaded: the graph; changed in place.
        recipe: how.

    Raises:
        GraphError: the graph cannot be had in the precision, has no cuts, or its parts do not make the whole.
    """
    if recipe.takes_bytes:
        loaded = take_bytes(loaded, recipe.preprocessing)
        recipe = replace(recipe, preprocessing=loaded.pixels)
    else:
        loaded = replace(loaded, pixels=recipe.preprocessing or loaded.pixels)
    request = PassRequest(half=(*(recipe.cuts or ()), *recipe.further))
    reference = None
    if recipe.precision in CALIBRATED:
        request, reference = _ask_float_network(run, loaded, recipe, request)
    converted = apply_precision(loaded, recipe.precision, request)
    decided = _add_confidences(converted.loaded, recipe)
    recipe = replace(recipe, answers=decided.answers)
    if recipe.segments:
        cut = cut_graph(decided.loaded, answers=recipe.answers, wanted=recipe.cuts)
    else:
        cut = _uncut_graph(decided.loaded, recipe.answers)
    cuts = thin_cuts(cut.cuts, recipe.every) if cut.cuts and recipe.cuts is None else cut.cuts
    how = {None: "none", "logits": "softmax", "probabilities": "max"}[decided.terms]
    blueprint = Blueprint(
        name=run.name,
        recipe=replace(
            recipe,
            settings={
                **recipe.settings,
                "confidence": how,
                "data_input": cut.report.data_input,
                **({SAID_BY: recipe.said_by} if recipe.said_by else {}),
                **({NO_EXITS: decided.reason} if decided.reason else {}),
            },
            task=recipe.task if decided.confidence is not None else NO_TASK,
        ),
        loaded=decided.loaded,
        cut=cut,
        cuts=cuts,
        confidence=decided.confidence,
        heads=decided.heads,
        precision_loss=converted.loss,
        int8=converted.report,
        reference=reference,
    )
    return _read_result(write_model(run, blueprint), reused=False)


def _ask_float_network(
    run: RunFolder, loaded: LoadedGraph, recipe: ExportRecipe, request: PassRequest
) -> tuple[PassRequest, Part]:
    """Returns a request with real rows, and the network in float32 as a part of its own.

    Raises:
        UsageError: there is nobody to ask for rows.
    """
    if recipe.rows is None:
        raise UsageError(
            f"--precision {recipe.precision} is calibrated on real rows: name your data with --data, or give the "
            "options of the export a function that draws them (ExportOptions.rows)"
        )
    with open_scratch(run.root / "float32") as folder:
        whole = replace(recipe, precision=PRECISIONS[0], segments=False, extra_files=None)
        copy = replace(loaded, model=loaded.model.clone())
        model = publish_model(RunFolder(root=folder), copy, whole).model
        rows = recipe.rows(RunFolder(root=folder), count_rows(loaded))
        full = load_graph_file(model.path(model.spec.full))
        ir.external_data.load_to_model(full)
        reference = full, model.spec.full
    agreement = None if model.spec.full.confidence is None else find_task(recipe.task).agreement
    return replace(request, rows=rows, answers=recipe.answers, agreement=agreement), reference


def count_rows(loaded: LoadedGraph) -> int:
    """Returns how many real rows a precision is calibrated and judged on: as many as are enough, and fit in memory."""
    row = sum(math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize for spec in loaded.inputs)
    return int(max(LEAST_ROWS, min(_ROWS, _ROW_BYTES // row)))


def _add_confidences(loaded: LoadedGraph, recipe: ExportRecipe) -> _Decided:
    """Adds the confidences of the network's answer and of its exit heads, where the task's recipe applies to it."""
    confidence = find_recipe(recipe.confidence or find_task(recipe.task).confidence)
    if len(recipe.answers) != 1:
        listed = ", ".join(f"'{name}'" for name in recipe.answers)
        why = f"the network answers with {len(recipe.answers)} outputs, {listed}, and exits with one"
        inputs = [spec.name for spec in loaded.inputs]
        fix = f"onnx.utils.extract_model(file, copy, {inputs}, ['{recipe.answers[-1]}'])"
        return _undecided(loaded, recipe.answers, f"{why}. Save a copy with one of them, for instance: {fix}")
    values = sample_answers(loaded, (*recipe.answers, *recipe.heads.values()))
    answer = values[recipe.answers[0]]
    linear = ends_linear(loaded.model.graph, recipe.answers[0])
    thin = answer.ndim > 2 and sum(size > 1 for size in answer.shape[1:]) <= 1
    if thin and recipe.terms is None and not confidence.applies(answer, linear):
        loaded = flatten_answer(loaded, _spec_of(recipe.answers[0], answer))
        values[recipe.answers[0]] = answer = answer.reshape(len(answer), -1)
    if recipe.terms is None and is_yes_or_no(answer, linear):
        loaded = widen_yes_or_no(loaded, _spec_of(recipe.answers[0], answer))
        yes = answer.reshape(-1, 1)
        values[recipe.answers[0]] = answer = np.concatenate([1 - yes, yes], axis=1)
    if recipe.task == "segmentation":
        _check_pixels(loaded, recipe.answers[0], answer)
    if recipe.terms is None and not confidence.applies(answer, linear):
        return _undecided(loaded, recipe.answers, f"answer '{recipe.answers[0]}': {why_no_choice(answer)}")
    terms = recipe.terms or find_terms(answer)
    names = {recipe.answers[0]: CONFIDENCE, **{head: f"{cut}/{CONFIDENCE}" for cut, head in recipe.heads.items()}}
    added, answered = {}, {output: output for output in names}
    for output, name in names.items():
        spec = _spec_of(output, values[output])
        loaded, added[output] = add_confidence(loaded, spec, recipe=confidence, terms=terms, name=name)
        if recipe.form is not None:
            small = name.removesuffix(CONFIDENCE) + recipe.form
            loaded, spec = make_small(loaded, spec, recipe.form, small)
            answered[output] = spec.name
    return _Decided(
        loaded=loaded,
        terms=terms,
        confidence=added[recipe.answers[0]],
        heads={cut: (answered[head], added[head]) for cut, head in recipe.heads.items()},
        answers=tuple(answered[output] for output in recipe.answers),
    )


def _check_pixels(loaded: LoadedGraph, name: str, values: np.ndarray) -> None:
    """Refuses answers (n, ...) that are not logits or probabilities of every pixel of the image."""
    image = next((spec.row_shape for spec in loaded.inputs if len(spec.row_shape) == 3), ())
    if values.ndim != 4 or values.shape[1] < 2 or values.dtype.kind != "f":
        raise GraphError(
            f"--task segmentation: the answer '{name}' is {values.dtype} of {values.shape[1:]} per row; expected "
            "(classes, height, width) in floating point. Export the network without its argmax"
        )
    if values.shape[2:] not in (image[1:], image[:2]):
        raise GraphError(
            f"--task segmentation: the answer '{name}' has {values.shape[2]} x {values.shape[3]} pixels, and the image "
            f"{image}; exits are compared pixel by pixel with masks of the image's size. Enlarge the answer in the "
            "network (Resize; in torch, torch.nn.functional.interpolate with mode='bilinear') and export it again"
        )


def _undecided(loaded: LoadedGraph, answers: tuple[str, ...], reason: str) -> _Decided:
    """A graph whose answers have no confidence, so that no row can leave early; the reason becomes a note."""
    noted = replace(loaded, notes=(*loaded.notes, f"no exits: {reason}"))
    return _Decided(loaded=noted, heads={}, answers=answers, reason=reason)


def _spec_of(name: str, values: np.ndarray) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(values.dtype), row_shape=values.shape[1:])


def _uncut_graph(loaded: LoadedGraph, answers: tuple[str, ...]) -> CutGraph:
    """Proves the outputs of a graph that is not to be cut."""
    report = CutReport(data_input=loaded.inputs[0].name, separators=0, places=0, notes=loaded.notes)
    specs = probe_tensors(loaded, ()).led
    check_answers(specs, answers)
    return CutGraph(cuts=(), specs=specs, report=report)


def reuse_model(run: RunFolder) -> ExportResult:
    """Opens the run's model as it is."""
    return _read_result(open_run_model(run), reused=True)


def _read_result(model: Model, *, reused: bool) -> ExportResult:
    return ExportResult(
        model=model,
        parity=read_json(model.artifact.path(PARITY_JSON), ParityReport),
        cut_report=read_json(model.artifact.path(CUTS_JSON), CutReport) if model.spec.cuts else None,
        reused=reused,
    )
