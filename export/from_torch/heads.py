"""Exit heads of a model folder: built where they are missing, and added once they are trained."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import (
    PRECISIONS,
    Cut,
    GraphError,
    GraphSpec,
    Model,
    Preprocessing,
    TensorSpec,
    find_task,
    new_artifact,
    recorded_command,
    write_model_spec,
)
from export.answers.small import SMALL_ANSWERS, make_small
from export.confidence.adding import add_confidence, find_recipe
from export.confidence.recipe import LOGITS, PROBABILITIES
from export.cuts.splitting import PartOutline, extract_part
from export.folder.recipe import CONFIDENCE, RECIPE
from export.folder.writing import command_note, head_file, head_name, open_run_model, run_of, save_part
from export.from_torch.graphs import export_module
from export.from_torch.head_graphs import write_head
from export.from_torch.masks import find_mask
from export.from_torch.publishing import rebuild_net
from export.graphs.files import load_graph_file
from export.graphs.loading import LoadedGraph
from export.graphs.normalising import convert_opset
from export.graphs.number_formats import dequantise_inputs
from export.nets.dense.heads import build_maps_ladder
from export.nets.heads import AnsweringHead, ChannelsFirst, build_ladder, features_read, mask_of
from export.nets.shipped_weights import WEIGHTS_FILE
from export.nets.token_heads import POOLER, mask_example
from export.nets.weights import head_state
from export.precision.passes import PassRequest, apply_precision

_log = logging.getLogger("pame.export")


HEAD_SIZES = "head_sizes"
"""The setting of ``model.json`` that says how large the head at each candidate is: rungs of ``build_ladder``."""


def build_missing_heads(model: Model) -> dict[str, nn.Module]:
    """Builds untrained heads for the cuts that should have one and do not: all but the last cut.

    Where the model says how large they are to be, they are so; otherwise they are as large as their kind.

    Raises:
        GraphError: the network's answer is not a choice among classes, or there is no head for features of that shape.
    """
    spec = model.spec
    sizes = str(spec.settings.get(HEAD_SIZES, "")).split(",")
    rungs = dict(zip((cut.name for cut in spec.cuts[:-1]), sizes, strict=False))
    ladders = build_head_ladders(model, [cut.name for cut in spec.cuts[:-1] if cut.name not in spec.heads])
    return {name: ladder[int(rungs.get(name) or 0)] for name, ladder in ladders.items()}


def build_head_ladders(model: Model, names: Sequence[str]) -> dict[str, tuple[nn.Module, ...]]:
    """Builds the untrained heads that some cuts may get, each cheaper than the one before it.

    The nets of a family have heads of one size.

    Args:
        model: the model folder.
        names: of cuts, none of them the last.

    Raises: as ``build_missing_heads``.
    """
    spec = model.spec
    if not names:
        return {}
    if spec.family != "onnx":
        net = rebuild_net(model)
        heads = dict(zip(net.cut_names, net.heads, strict=True))
        return {name: (heads[name],) for name in names}
    answer = _answer(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cuts = [spec.cuts[spec.cut_index(name)] for name in names]
        return {cut.name: _build_imported_ladder(model, cut, answer.row_shape) for cut in cuts}


def _build_imported_ladder(model: Model, cut: Cut, answer: tuple[int, ...]) -> tuple[nn.Module, ...]:
    spec = model.spec
    index = spec.cut_index(cut.name)
    kind = str(spec.settings["head"])
    last = [_reads_channels_last(model, position) for position in range(index, len(spec.cuts))]
    here, *later = [
        _channels_first(other) if is_last else other for other, is_last in zip(spec.cuts[index:], last, strict=True)
    ]
    mask = find_mask(model, cut) if len(cut.main.row_shape) == 2 and kind != POOLER else None
    if len(answer) == 3:
        ladder: tuple[nn.Module, ...] = build_maps_ladder(here, answer)
    else:
        ladder = build_ladder(here, later, classes=answer[0], kind=kind, mask=mask)
    return tuple(nn.Sequential(ChannelsFirst(), head) for head in ladder) if last[0] else ladder


def _channels_first(cut: Cut) -> Cut:
    height, width, channels = cut.main.row_shape
    return replace(cut, main=replace(cut.main, row_shape=(channels, height, width)))


def _reads_channels_last(model: Model, index: int) -> bool:
    """Does the network behind a cut turn its features (H, W, C) into (C, H, W) wherever it reads them?

    Networks that come from channels-last frameworks do so before every convolution.
    """
    spec = model.spec
    cut, final = spec.cuts[index], spec.final_head
    behind = [*spec.segments[index + 1 :], *([final] if final is not None else [])]
    if len(cut.main.row_shape) != 3 or not behind:
        return False
    graph = load_graph_file(model.path(behind[0])).graph
    readers = [node for value in graph.inputs if value.name == cut.main.name for node in value.consumers()]
    perms = [node.attributes.get_ints("perm", ()) for node in readers if node.op_type == "Transpose"]
    return any(tuple(perm or ()) == (0, 3, 1, 2) for perm in perms)


def _answer(model: Model) -> TensorSpec:
    full = model.spec.full
    if full.confidence is None:
        raise GraphError(
            f"{model.artifact.folder}: the network's answer is not a choice among classes ({', '.join(full.answers)}), "
            "and there are exit heads for classification only"
        )
    return full.output(full.answers[0])


def add_heads(
    model: Model,
    heads: Mapping[str, nn.Module],
    *,
    inputs: Mapping[str, str],
    preprocessing: Preprocessing | None = None,
    report: Callable[[str], None] = _log.info,
) -> Model:
    """Publishes the model folder again with these exit heads.

    Args:
        model: the model; heads of other cuts stay.
        heads: cut name -> torch module from the cut's main tensor (B, ...), and what else it carries where
            ``export.features_read`` names some, to logits (B, classes, ...).
        inputs: digests of what the heads were trained from, for the manifest.
        preprocessing: of the images in training; ``None``: the model's stays.
        report: is called with a line on what is done.

    Raises:
        UsageError: there is no such cut.
        GraphError: the last cut was named, or a head's answers do not have the form of the network's.
    """
    if not heads:
        return model
    spec, folder, manifest = model.spec, model.artifact.folder, model.artifact.manifest
    cuts = {name: spec.cuts[spec.cut_index(name)] for name in heads}
    if spec.cuts[-1].name in cuts:
        raise GraphError(f"'{spec.cuts[-1].name}' is the last cut: the final head answers right behind it")
    report(f"exporting {len(heads)} exit heads")
    parts = _export_heads(model, cuts, heads)
    with new_artifact(
        folder, kind="model", inputs={**manifest.inputs, **inputs}, parameters=manifest.parameters,
        notes=command_note(recorded_command(folder)),
    ) as staging:  # fmt: skip
        for entry in manifest.files:
            (staging / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / entry.path, staging / entry.path)
        added = {
            name: save_part(staging, part, head_file(spec.cut_index(name), cuts[name])) for name, part in parts.items()
        }
        everything = {**spec.heads, **added}
        ordered = {cut.name: everything[cut.name] for cut in spec.cuts if cut.name in everything}
        stated = preprocessing or spec.preprocessing
        write_model_spec(staging, replace(spec, heads=ordered, preprocessing=stated))
        if (staging / WEIGHTS_FILE).exists():
            _add_head_weights(staging / WEIGHTS_FILE, heads)
    return open_run_model(run_of(model))


def _add_head_weights(path: Path, heads: Mapping[str, nn.Module]) -> None:
    state = load_file(path)
    for name, head in heads.items():
        state.update(head_state(name, head))
    save_file(state, path)


def write_heads(model: Model, heads: Mapping[str, nn.Module], folder: Path) -> dict[str, GraphSpec]:
    """Writes the graphs of heads, trained or not, into a folder: what is timed before it is trained.

    Returns:
        Cut name -> the graph; its file is relative to the folder.
    """
    spec = model.spec
    cuts = {name: spec.cuts[spec.cut_index(name)] for name in heads}
    return {
        name: save_part(folder, part, head_file(spec.cut_index(name), cuts[name]))
        for name, part in _export_heads(model, cuts, heads).items()
    }


class _Heads(nn.Module):
    """Several heads side by side: one answer each, from the features that it reads."""

    def __init__(self, heads: Mapping[str, nn.Module], reads: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads.values())
        self.inputs = tuple(dict.fromkeys(name for names in reads.values() for name in names))
        self.places = [[self.inputs.index(name) for name in reads[cut]] for cut in heads]

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        read = zip(self.heads, self.places, strict=True)
        return tuple(head(*(features[place] for place in places)) for head, places in read)


def _read_by(head: nn.Module, cut: Cut) -> dict[str, TensorSpec]:
    """Returns the tensors of a cut that its head reads, the main one first."""
    there = {tensor.name: tensor for tensor in cut.tensors}
    return {name: there[name] for name in (cut.main.name, *features_read(head))}


def _export_heads(
    model: Model, cuts: Mapping[str, Cut], heads: Mapping[str, nn.Module]
) -> dict[str, tuple[ir.Model, GraphSpec]]:
    """Returns the graph of every head and its spec: our own are written at once, others go through torch together."""
    answer, terms, form = _answer(model), _terms(model), model.spec.settings.get("answers")
    still = {name: AnsweringHead(copy.deepcopy(head), probabilities=terms == PROBABILITIES).eval()
             for name, head in heads.items()}  # fmt: skip
    shapes = _check_answers(still, cuts, answer, form)
    word = answer.name if form is None else "logits"
    outputs = {name: TensorSpec(name=f"{name}/{word}", dtype="float32", row_shape=shape)
               for name, shape in shapes.items()}  # fmt: skip
    parts, others = {}, []
    for name, cut in cuts.items():
        written = write_head(still[name], cut, outputs[name])
        if written is None:
            others.append(name)
        else:
            parts.update(_finish_heads(model, written, {name: cut}, outputs))
    if others:
        read = {name: _read_by(still[name], cuts[name]) for name in others}
        module = _Heads({name: still[name] for name in others}, {name: list(specs) for name, specs in read.items()})
        specs = {name: spec for each in read.values() for name, spec in each.items()}
        exported = export_module(
            module.eval(), tuple(_example(specs[name]) for name in module.inputs), input_names=module.inputs,
            output_names=[outputs[name].name for name in others],
        )  # fmt: skip
        parts.update(_finish_heads(model, exported, {name: cuts[name] for name in others}, outputs))
    return {name: parts[name] for name in cuts}


def _finish_heads(
    model: Model, loaded: LoadedGraph, cuts: Mapping[str, Cut], outputs: Mapping[str, TensorSpec]
) -> dict[str, tuple[ir.Model, GraphSpec]]:
    """Brings a graph of heads to the network's opset and precision, adds their confidences and takes it apart."""
    half = list(dict.fromkeys(spec.name for cut in cuts.values() for spec in cut.tensors if spec.dtype == "float16"))
    precision = (
        model.spec.precision if model.spec.reference is None else PRECISIONS[0]
    )  # quantised ones have heads in it
    loaded = apply_precision(_at_opset_of(model, loaded), precision, PassRequest(half=half)).loaded
    dequantise_inputs(loaded.model.graph, (spec for cut in cuts.values() for spec in cut.tensors))
    loaded = replace(loaded, sequence=model.spec.sequence)
    recipe = find_recipe(str(model.spec.settings.get(RECIPE) or find_task(model.spec.task).confidence))
    parts = {}
    for name, cut in cuts.items():
        loaded, confidence = add_confidence(
            loaded, outputs[name], recipe=recipe, terms=_terms(model), name=f"{name}/{CONFIDENCE}"
        )  # fmt: skip
        said = outputs[name]
        if (form := model.spec.settings.get("answers")) is not None:
            loaded, said = make_small(loaded, said, str(form), f"{name}/{form}")
        decision = TensorSpec(name=confidence, dtype="float32", row_shape=())
        outline = PartOutline(
            name=head_name(cut), available={spec.name: spec for spec in cut.tensors}, outputs=[said, decision],
            answers=(said.name,), confidence=confidence,
        )  # fmt: skip
        parts[name] = extract_part(loaded, outline)
    return parts


def _terms(model: Model) -> str:
    """Returns what the network answers with, and so its exit heads: logits or probabilities."""
    return PROBABILITIES if model.spec.settings.get("confidence") == "max" else LOGITS


def _example(tensor: TensorSpec) -> Tensor:
    """Returns two rows of a tensor at a cut as heads read it; other precisions are converted after the export."""
    dtype = "float32" if tensor.dtype == "float16" or tensor.quantised is not None else tensor.dtype
    return torch.zeros(2, *tensor.row_shape, dtype=getattr(torch, dtype))


def _check_answers(
    heads: Mapping[str, nn.Module], cuts: Mapping[str, Cut], answer: TensorSpec, form: object
) -> dict[str, tuple[int, ...]]:
    """Returns the row shape of each head's answers, before they are brought to a small form."""
    shapes = {}
    with torch.no_grad():
        for name, head in heads.items():
            mask = mask_of(head)
            read = map(_example, _read_by(head, cuts[name]).values()) if mask is None else (
                _example(cuts[name].main), mask_example(mask, 2)
            )  # fmt: skip
            found = tuple(head(*read).shape)
            shapes[name] = found[1:]
            small = found[1:] if form is None else SMALL_ANSWERS[str(form)].row_shape(found[1:])
            if small != answer.row_shape:
                raise GraphError(
                    f"the exit head of '{name}' answers {found[1:]} per row, the network itself "
                    f"{answer.row_shape}; both must have the same classes"
                )
    return shapes


def _at_opset_of(model: Model, loaded: LoadedGraph) -> LoadedGraph:
    """Brings a head to the opset of the segments, since a stage is one graph."""
    opset = load_graph_file(model.path(model.spec.full)).opset_imports.get("", 0)
    return replace(loaded, model=convert_opset(loaded.model, opset))
