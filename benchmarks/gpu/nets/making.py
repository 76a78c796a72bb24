"""Networks: the subjects to measure, made on the spot where none was made ahead.

``demo``: ResNet-32 with its trained exits; ``resnet50``: for 224 x 224 images; ``bert``: an encoder of BERT-base's size
for 128 tokens; the last two with random weights. Exits lie after a third and two thirds of the cuts, with thresholds at
the median confidence, so that about half of the rows leave at each. ``toy`` is three layers written by hand, which a
rehearsal makes in no time. A name with ``-fp16`` computes in half precision.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import GraphSpec, Model, RunFolder, TensorSpec, UsageError
from benchmarks.gpu.nets.subjects import (
    SUBJECT_JSON,
    Subject,
    SubjectSpec,
    between_cuts,
    open_subject,
    set_thresholds,
    write_subject,
)
from benchmarks.gpu.nets.toy import CLASSES, HIDDEN, IMAGE, write_toy
from benchmarks.gpu.stages import Setting

NETWORKS = ("demo", "resnet50", "bert", "toy")
TOKENS = 128
_ROWS = 256


def ensure_subject(name: str, setting: Setting) -> Subject:
    """Opens a subject that was made ahead or earlier in this run, or makes it.

    Raises:
        UsageError: there is no such network.
    """
    for folder in (setting.prebuilt, setting.scratch):
        if folder is not None and (folder / name / SUBJECT_JSON).is_file():
            return open_subject(folder / name)
    return make_subject(name, setting.scratch, rehearsal=setting.rehearsal)


def make_subject(name: str, folder: Path, *, rehearsal: bool = False) -> Subject:
    """Makes a subject in ``folder / name``; a rehearsal's encoder is a tiny one."""
    network, _, precision = name.partition("-")
    if network not in NETWORKS or precision not in ("", "fp16"):
        raise UsageError(f"there is no network '{name}'; there are {', '.join(NETWORKS)}, and each with -fp16")
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    if network == "toy":
        write_toy(target, name, half=precision == "fp16")
    else:
        model = _export(network, target / "run", precision or "fp32", rehearsal=rehearsal)
        _write_stages(target, name, model)
    return open_subject(target)


def torch_module(network: str, *, rehearsal: bool = False) -> Any:
    """Returns the whole network as a torch module in evaluation mode, with random weights.

    Args:
        network: ``resnet50``, ``bert`` or ``toy``.
        rehearsal: a tiny one.

    Raises:
        UsageError: it has none.
    """
    import torch

    if network == "toy":
        layers = [torch.nn.Linear(IMAGE, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)]
        return torch.nn.Sequential(*layers).eval()
    if network == "bert":
        return _make_encoder(rehearsal=rehearsal).eval()
    if network == "resnet50":
        from export import ResNet

        return ResNet(_resnet_config(rehearsal=rehearsal)).eval()
    raise UsageError(f"there is no torch module of '{network}'; there are resnet50, bert and toy")


def network_inputs(network: str, rows: int, *, rehearsal: bool = False) -> dict[str, np.ndarray]:
    """Returns seeded inputs of such a network, by name."""
    rng = np.random.default_rng(0)
    if network == "bert":
        ids = rng.integers(0, 50, (rows, 8 if rehearsal else TOKENS))
        return {"ids": ids, "mask": np.ones_like(ids)}
    shape = (IMAGE,) if network == "toy" else _resnet_config(rehearsal=rehearsal).input_shape
    return {"images": rng.standard_normal((rows, *shape), np.float32)}


# ---------------------------------------------------------------- exported networks


def _make_encoder(*, rehearsal: bool) -> Any:
    from benchmarks.bert_encoder import BertEncoder

    if rehearsal:
        return BertEncoder(layers=3, width=16, heads=2, tokens=50, length=8)
    return BertEncoder(length=TOKENS)


def _resnet_config(*, rehearsal: bool) -> Any:
    from export import ResNetConfig

    return ResNetConfig(depth=20) if rehearsal else ResNetConfig(depth=50, classes=1000, input_shape=(3, 224, 224))


def _export(network: str, root: Path, precision: str, *, rehearsal: bool) -> Model:
    from export import ExportOptions, export_model, export_torch

    run = RunFolder(root=root)
    if network == "demo":
        return export_model(run, ExportOptions(precision=precision)).model
    if network == "resnet50":
        options = ExportOptions(net=_resnet_config(rehearsal=rehearsal), weights="random", precision=precision)
        return export_model(run, options).model
    import torch

    from benchmarks.bert_encoder import example_inputs

    torch.manual_seed(0)
    return export_torch(
        run, _make_encoder(rehearsal=rehearsal), example_inputs(8 if rehearsal else TOKENS),
        input_names=["ids", "mask"], output_names=["logits"],
        options=ExportOptions(precision=precision),
    ).model  # fmt: skip


def _write_stages(target: Path, name: str, model: Model) -> None:
    from export import add_heads, build_missing_heads, merge_stage

    cuts = [cut.name for cut in model.spec.cuts]
    exits = [cuts[len(cuts) * part // 3] for part in (1, 2)]
    missing = {cut: head for cut, head in build_missing_heads(model).items() if cut in exits}
    model = add_heads(model, missing, inputs={"training": "none"})
    stages = tuple(
        merge_stage(model, after=after, until=until, path=target / f"stage_{index:02d}.onnx")
        for index, (after, until) in enumerate(between_cuts(exits))
    )
    samples = {spec.name: random_rows(spec, _ROWS) for spec in model.spec.full.inputs}
    folder = model.artifact.folder.relative_to(target)
    spec = SubjectSpec(
        name=name, full=_placed(model.spec.full, folder / model.spec.full.file),
        stages=tuple(_placed(graph, f"stage_{index:02d}.onnx") for index, graph in enumerate(stages)),
        heads=tuple(_placed(model.spec.heads[cut], folder / model.spec.heads[cut].file) for cut in exits),
        thresholds=(),
    )  # fmt: skip
    write_subject(target, set_thresholds(target, spec, samples), samples)


def _placed(graph: GraphSpec, file: Path | str) -> GraphSpec:
    return replace(graph, file=str(file))


def random_rows(spec: TensorSpec, rows: int) -> np.ndarray:
    """Returns seeded noise for an input of floating numbers, and valid token ids or a full mask for one of integers."""
    rng = np.random.default_rng(0)
    shape = (rows, *spec.row_shape)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape, np.float32).astype(spec.dtype)
    return np.ones(shape, spec.dtype) if spec.name == "mask" else rng.integers(0, 50, shape).astype(spec.dtype)
