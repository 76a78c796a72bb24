"""Model folders and torch: modules exported, nets rebuilt from a folder, folders published again with trained heads."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
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
    RunFolder,
    TensorSpec,
    new_artifact,
    write_model_spec,
)
from artifacts.console import say
from export.cuts.splitting import extract_part
from export.folder.pipeline import ExportResult, export_graph, file_parameters, reuse_model
from export.folder.writing import (
    EXPORT_PREFIX,
    export_inputs,
    head_file,
    head_name,
    is_model_current,
    open_run_model,
    save_part,
)
from export.from_torch.family import CONFIDENCE, FamilySettings, build_net, compare_with_torch, write_net
from export.from_torch.graphs import export_module
from export.graphs.loading import LoadedGraph, convert_opset
from export.nets.heads import ChannelsFirst, DecidingHead, build_head
from export.nets.multi_exit import MultiExitNet, head_state
from export.nets.shipped_weights import WEIGHTS_FILE
from export.options import ExportOptions
from export.precision.fp16 import apply_precision


def export_torch(
    run: RunFolder,
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    every: int | None = None,
    head: str | None = None,
    precision: str = PRECISIONS[0],
) -> ExportResult:
    """Exports any torch module through ``torch.onnx.export`` and cuts it as any ONNX graph.

    Args:
        run: the run's folder.
        module: the network; exported in evaluation mode and left in the mode it was in.
        example_inputs: one tensor per input, at least 2 rows each.
        input_names, output_names: names in the graph; ``None`` leaves them to torch.
        every, head, precision: as in ``ExportOptions``.

    Raises:
        GraphError: torch cannot export it, or it has no cuts.
    """
    was_training = module.training
    module.eval()
    try:
        loaded = export_module(module, example_inputs, input_names=input_names, output_names=output_names)
        source = compare_with_torch(loaded, module)
    finally:
        module.train(was_training)
    options = ExportOptions(source=f"{type(module).__name__}.onnx", every=every, head=head, precision=precision)
    content = ir.to_proto(loaded.model).SerializeToString(deterministic=True)
    inputs = {f"{EXPORT_PREFIX}onnx": hashlib.sha256(content).hexdigest()}
    parameters = file_parameters(options)
    if is_model_current(run, inputs=inputs, parameters=parameters):
        return reuse_model(run)
    return export_graph(run, loaded, options, source=source, inputs=inputs, parameters=parameters)


def rebuild_net(model: Model) -> MultiExitNet:
    """Rebuilds the torch net of a family's model folder, with heads (trained or not) at every candidate cut.

    Raises:
        GraphError: the model was imported; it has no torch net.
    """
    if model.spec.family == "onnx":
        raise GraphError(
            f"{model.artifact.folder} was imported, so there is no torch net to train. Train its exit heads alone: "
            "python -m calibration without --train joint"
        )
    net, _ = build_net(FamilySettings.from_record(model.spec.settings), model.artifact.path(WEIGHTS_FILE))
    return net


def build_missing_heads(model: Model) -> dict[str, nn.Module]:
    """Builds untrained heads for the cuts that should have one and do not: all but the last cut.

    Raises:
        GraphError: the network's answer is no choice among classes, or there is no head for features of that shape.
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
            f"{model.artifact.folder}: the network's answer is no choice among classes ({', '.join(full.answers)}), "
            "and exit heads are known for classification only"
        )
    return full.output(full.answers[0])


def add_heads(
    model: Model, heads: Mapping[str, nn.Module], *, inputs: Mapping[str, str],
    preprocessing: Preprocessing | None = None,
) -> Model:  # fmt: skip
    """Publishes the model folder again with these exit heads.

    Args:
        model: the model; heads of other cuts stay.
        heads: cut name -> torch module from the cut's main tensor (B, ...) to logits (B, classes).
        inputs: digests of what the heads were trained from, for the manifest.
        preprocessing: how the images were prepared in training; ``None``: they are no images, what the model states
            stays.

    Raises:
        UsageError: there is no such cut.
        GraphError: the last cut was named, or a head's answers do not have the form of the network's.
    """
    if not heads:
        return model
    spec, folder = model.spec, model.artifact.folder
    cuts = {name: spec.cuts[spec.cut_index(name)] for name in heads}
    if spec.cuts[-1].name in cuts:
        raise GraphError(f"'{spec.cuts[-1].name}' is the last cut: the final head answers right behind it")
    manifest = model.artifact.manifest
    parts = _export_heads(model, cuts, heads)
    with new_artifact(
        folder, kind="model", inputs={**manifest.inputs, **inputs}, parameters=manifest.parameters
    ) as staging:
        for entry in manifest.files:
            (staging / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / entry.path, staging / entry.path)
        added = {
            name: save_part(staging, part, head_file(spec.cut_index(name), cuts[name])) for name, part in parts.items()
        }
        everything = {**spec.heads, **added}
        ordered = {cut.name: everything[cut.name] for cut in spec.cuts if cut.name in everything}
        write_model_spec(staging, replace(spec, heads=ordered, preprocessing=preprocessing or spec.preprocessing))
        if (staging / WEIGHTS_FILE).exists():
            _add_head_weights(staging / WEIGHTS_FILE, heads)
    return open_run_model(RunFolder(root=folder.parent))


def _add_head_weights(path: Path, heads: Mapping[str, nn.Module]) -> None:
    state = load_file(path)
    for name, head in heads.items():
        state.update(head_state(name, head))
    save_file(state, path)


class _Heads(nn.Module):
    """Several heads side by side: one feature tensor per head, two outputs per head."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for head, x in zip(self.heads, features, strict=True) for out in head(x))


def _export_heads(
    model: Model, cuts: Mapping[str, Cut], heads: Mapping[str, nn.Module]
) -> dict[str, tuple[ir.Model, GraphSpec]]:
    answer = _answer(model)
    probabilities = model.spec.settings.get("confidence") == "max"
    still = [DecidingHead(copy.deepcopy(head), probabilities=probabilities) for head in heads.values()]
    joint = _Heads(still).eval()
    half = {cuts[name].main.name for name in heads if cuts[name].main.dtype == "float16"}
    types = {name: "float32" if cuts[name].main.name in half else cuts[name].main.dtype for name in heads}
    examples = tuple(torch.zeros(2, *cuts[name].main.row_shape, dtype=getattr(torch, types[name])) for name in heads)
    outputs = {name: (f"{name}/{answer.name}", f"{name}/{CONFIDENCE}") for name in heads}
    say(f"exporting {len(heads)} exit heads")
    with torch.no_grad():
        for name, example, head in zip(heads, examples, joint.heads, strict=True):
            shape = tuple(head(example)[0].shape)
            if shape != (2, *answer.row_shape):
                raise GraphError(
                    f"the exit head of '{name}' answers {shape[1:]} per row, the network itself {answer.row_shape}; "
                    "both must have the same classes"
                )
    loaded = export_module(
        joint, examples, input_names=[cuts[name].main.name for name in heads],
        output_names=[output for pair in outputs.values() for output in pair],
    )  # fmt: skip
    loaded, _ = apply_precision(_at_opset_of(model, loaded), model.spec.precision, half=half)
    parts = {}
    for name, cut in cuts.items():
        said = TensorSpec(name=outputs[name][0], dtype="float32", row_shape=answer.row_shape)
        certain = TensorSpec(name=outputs[name][1], dtype="float32", row_shape=())
        parts[name] = extract_part(
            loaded, head_name(cut), {cut.main.name: cut.main}, [said, certain],
            answers=(said.name,), confidence=certain.name,
        )  # fmt: skip
    return parts


def _at_opset_of(model: Model, loaded: LoadedGraph) -> LoadedGraph:
    """A stage is one graph, so head and segments must speak the same opset."""
    opset = ir.load(model.path(model.spec.full)).opset_imports.get("", 0)
    return replace(loaded, model=convert_opset(loaded.model, opset))


def publish_net(
    model: Model, net: MultiExitNet, *, inputs: Mapping[str, str], trained: Collection[str] | None = None,
    settings: Mapping[str, str | int | float | bool] | None = None,
) -> Model:  # fmt: skip
    """Publishes a torch family's model folder again from a trained net (joint training moves the backbone too).

    Args:
        model: the model whose settings the net was rebuilt with.
        net: what ``rebuild_net`` returned, trained since.
        inputs: digests of what it was trained from, for the manifest.
        trained: the cuts whose heads are trained; ``None``: all of the net's.
        settings: what the training adds to the model's settings: ``mean`` and ``std``.

    Raises:
        GraphError: the parts do not make the whole.
    """
    manifest = model.artifact.manifest
    return write_net(
        RunFolder(root=model.artifact.folder.parent),
        net,
        FamilySettings.from_record({**model.spec.settings, **(settings or {})}),
        trained=net.cut_names if trained is None else trained,
        segments=bool(model.spec.cuts),
        inputs={**export_inputs(manifest), **inputs},
        parameters=manifest.parameters,
    )
