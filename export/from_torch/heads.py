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
from export.cuts.splitting import PartOutline, extract_part
from export.folder.recipe import CONFIDENCE
from export.folder.writing import command_note, head_file, head_name, open_run_model, run_of, save_part
from export.from_torch.graphs import export_module
from export.from_torch.publishing import rebuild_net
from export.graphs.confidence import LOGITS, PROBABILITIES, add_confidence, find_recipe
from export.graphs.loading import LoadedGraph
from export.graphs.normalising import convert_opset
from export.nets.heads import AnsweringHead, ChannelsFirst, build_head
from export.nets.multi_exit import head_state
from export.nets.shipped_weights import WEIGHTS_FILE
from export.precision.passes import apply_precision

_log = logging.getLogger("pame.export")


def build_missing_heads(model: Model) -> dict[str, nn.Module]:
    """Builds untrained heads for the cuts that should have one and do not: all but the last cut.

    Raises:
        GraphError: the network's answer is not a choice among classes, or there is no head for features of that shape.
    """
    spec = model.spec
    missing = [cut for cut in spec.cuts[:-1] if cut.name not in spec.heads]
    if not missing:
        return {}
    if spec.family != "onnx":
        net = rebuild_net(model)
        heads = dict(zip(net.cut_names, net.heads, strict=True))
        return {cut.name: heads[cut.name] for cut in missing}
    answer = _answer(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {cut.name: _build_imported_head(model, cut, classes=answer.row_shape[0]) for cut in missing}


def _build_imported_head(model: Model, cut: Cut, *, classes: int) -> nn.Module:
    spec = model.spec
    index = spec.cut_index(cut.name)
    kind = str(spec.settings["head"])
    last = [_reads_channels_last(model, position) for position in range(index, len(spec.cuts))]
    here, *later = [
        _channels_first(other) if is_last else other for other, is_last in zip(spec.cuts[index:], last, strict=True)
    ]
    head = build_head(here, later, classes=classes, kind=kind)
    return nn.Sequential(ChannelsFirst(), head) if last[0] else head


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
    graph = ir.load(model.path(behind[0])).graph
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
        heads: cut name -> torch module from the cut's main tensor (B, ...) to logits (B, classes).
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


class _Heads(nn.Module):
    """Several heads side by side: one feature tensor and one answer per head."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(x) for head, x in zip(self.heads, features, strict=True))


def _export_heads(
    model: Model, cuts: Mapping[str, Cut], heads: Mapping[str, nn.Module]
) -> dict[str, tuple[ir.Model, GraphSpec]]:
    answer = _answer(model)
    terms = PROBABILITIES if model.spec.settings.get("confidence") == "max" else LOGITS
    still = [AnsweringHead(copy.deepcopy(head), probabilities=terms == PROBABILITIES) for head in heads.values()]
    module = _Heads(still).eval()
    examples = tuple(_example(cut) for cut in cuts.values())
    _check_answers(module, cuts, examples, answer)
    outputs = {name: TensorSpec(name=f"{name}/{answer.name}", dtype="float32", row_shape=answer.row_shape)
               for name in cuts}  # fmt: skip
    loaded = export_module(
        module, examples, input_names=[cut.main.name for cut in cuts.values()],
        output_names=[output.name for output in outputs.values()],
    )  # fmt: skip
    half = [cut.main.name for cut in cuts.values() if cut.main.dtype == "float16"]
    loaded, _ = apply_precision(_at_opset_of(model, loaded), model.spec.precision, half=half)
    recipe = find_recipe(find_task(model.spec.task).confidence)
    parts = {}
    for name, cut in cuts.items():
        loaded, confidence = add_confidence(
            loaded, outputs[name], recipe=recipe, terms=terms, name=f"{name}/{CONFIDENCE}"
        )  # fmt: skip
        decision = TensorSpec(name=confidence, dtype="float32", row_shape=())
        outline = PartOutline(
            name=head_name(cut), available={cut.main.name: cut.main}, outputs=[outputs[name], decision],
            answers=(outputs[name].name,), confidence=confidence,
        )  # fmt: skip
        parts[name] = extract_part(loaded, outline)
    return parts


def _example(cut: Cut) -> Tensor:
    """Returns two rows of a cut's main tensor; a network in half precision is converted after the export."""
    dtype = "float32" if cut.main.dtype == "float16" else cut.main.dtype
    return torch.zeros(2, *cut.main.row_shape, dtype=getattr(torch, dtype))


def _check_answers(module: _Heads, cuts: Mapping[str, Cut], examples: tuple[Tensor, ...], answer: TensorSpec) -> None:
    with torch.no_grad():
        for name, found in zip(cuts, module(*examples), strict=True):
            if tuple(found.shape) != (2, *answer.row_shape):
                raise GraphError(
                    f"the exit head of '{name}' answers {tuple(found.shape[1:])} per row, the network itself "
                    f"{answer.row_shape}; both must have the same classes"
                )


def _at_opset_of(model: Model, loaded: LoadedGraph) -> LoadedGraph:
    """Brings a head to the opset of the segments, since a stage is one graph."""
    opset = ir.load(model.path(model.spec.full)).opset_imports.get("", 0)
    return replace(loaded, model=convert_opset(loaded.model, opset))
