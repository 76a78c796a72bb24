"""Torch families: find weights, build a net, export it once with everything it tells, take the parts by name."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import PRECISIONS, GraphError, Model, RunFolder, UsageError, file_digest, open_artifact
from artifacts.console import say
from export.cuts.splitting import cut_graph
from export.folder.pipeline import FORMAT, ExportResult, read_parity, reuse_model, uncut_graph
from export.folder.writing import (
    EXPORT_PREFIX,
    Blueprint,
    SourceParity,
    is_model_current,
    precision_record,
    write_model,
)
from export.from_torch.graphs import export_module
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCE, open_graph, relative_error, sample_rows
from export.nets.heads import confidence
from export.nets.multi_exit import MultiExitNet, attach_heads, load_weights, read_weights, save_weights
from export.nets.resnet import ResNet, ResNetConfig
from export.nets.shipped_weights import WEIGHTS_FILE, Recipe, find_pretrained, read_recipe
from export.options import HEADS, PRETRAINED, RANDOM, ExportOptions, thin
from export.precision.fp16 import apply_precision

INPUT = "input"
ANSWER = "logits"
CONFIDENCE = "confidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySettings:
    """What a family's net is built from, and what ``model.json`` records of it.

    Attributes:
        config: which ResNet.
        every, head: where exits sit and what their heads look like.
        weights: where the weights came from, for the record.
        mean, std: normalisation of pixel values in [0, 1] that the weights were trained with; ``None``: not known.
        precision: of the graphs; the net itself, and its weights, stay in float32.
    """

    config: ResNetConfig
    every: int
    head: str
    weights: str
    mean: float | None = None
    std: float | None = None
    precision: str = PRECISIONS[0]

    def record(self) -> dict[str, str | int | float | bool]:
        """Returns the settings of ``model.json``."""
        shape = ",".join(map(str, self.config.input_shape))
        known = {"mean": self.mean, "std": self.std}
        return {
            "depth": self.config.depth, "classes": self.config.classes, "input_shape": shape, "every": self.every,
            "head": self.head, "weights": self.weights, "confidence": "softmax", "data_input": INPUT,
            **{name: value for name, value in known.items() if value is not None},
            **precision_record(self.precision),
        }  # fmt: skip

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> FamilySettings:
        """Reads what ``record`` wrote."""
        channels, height, width = map(int, str(settings["input_shape"]).split(","))
        config = ResNetConfig(
            depth=settings["depth"], classes=settings["classes"], input_shape=(channels, height, width)
        )
        return cls(
            config=config, every=settings["every"], head=settings["head"], weights=settings["weights"],
            mean=settings.get("mean"), std=settings.get("std"), precision=settings.get("precision", PRECISIONS[0]),
        )  # fmt: skip


def export_family(run: RunFolder, options: ExportOptions) -> ExportResult:
    """Exports the ResNet family, or reuses what is there; errors as ``export_model``."""
    config = ResNetConfig(depth=options.depth, classes=options.classes, input_shape=options.input_shape)
    source, recipe = _find_weights(options, config)
    settings = FamilySettings(
        config=config,
        every=options.every or (recipe.every if recipe else 1),
        head=options.head or (recipe.head if recipe else HEADS[0]),
        weights=source.name if options.weights not in (PRETRAINED, RANDOM) and source else options.weights,
        mean=recipe.mean if recipe else None,
        std=recipe.std if recipe else None,
        precision=options.precision,
    )
    inputs = {f"{EXPORT_PREFIX}weights": file_digest(source)} if source else {}
    parameters = {"format": FORMAT, "family": "resnet", "segments": options.segments, **settings.record()}
    if is_model_current(run, inputs=inputs, parameters=parameters):
        return reuse_model(run)
    say(f"exporting ResNet-{config.depth} ({settings.weights} weights) into {run.model}")
    net, trained = build_net(settings, source)
    model = write_net(
        run, net, settings, trained=trained, segments=options.segments, inputs=inputs, parameters=parameters
    )
    return ExportResult(model=model, parity=read_parity(model), reused=False)


def _find_weights(options: ExportOptions, config: ResNetConfig) -> tuple[Path | None, Recipe | None]:
    if options.weights == RANDOM:
        return None, None
    if options.weights != PRETRAINED:
        path = Path(options.weights)
        if not path.is_file():
            raise UsageError(f"--weights {path}: there is no such file; give a .safetensors or .pth file, or random")
        recipe = read_recipe(path.parent) if (path.parent / "recipe.json").is_file() else None
        return path, recipe
    folder = find_pretrained(config.depth, config.classes, config.input_shape)
    if folder is None:
        raise UsageError(
            f"no weights are shipped for ResNet-{config.depth} with {config.classes} classes and input "
            f"{','.join(map(str, config.input_shape))}. Give some with --weights FILE, or start with --weights random"
        )
    artifact = open_artifact(folder, kind="weights", remedy="pip install --force-reinstall pame")
    return artifact.path(WEIGHTS_FILE), read_recipe(folder)


def build_net(settings: FamilySettings, weights: Path | None) -> tuple[MultiExitNet, tuple[str, ...]]:
    """Builds a net and loads its weights; untrained parts are drawn with seed 0.

    Returns:
        The net in evaluation mode, and the cuts whose heads were loaded.

    Raises:
        InputError: the file cannot be read as weights.
        GraphError: they do not fit the net.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = attach_heads(
            ResNet(settings.config), settings.config.input_shape,
            classes=settings.config.classes, kind=settings.head, every=settings.every,
        )  # fmt: skip
    trained: tuple[str, ...] = ()
    if weights is not None:
        trained = load_weights(net, read_weights(weights), where=str(weights))
    net.eval()
    return net, trained


class _Everything(nn.Module):
    """A net that tells all: logits, confidence, the features after each block, and what each head answers."""

    def __init__(self, net: MultiExitNet, cuts: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.cuts = cuts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.net.backbone.forward_with_features(x)
        told = [logits, confidence(logits), *(features[name] for name in self.cuts)]
        for name, head in zip(self.net.cut_names, self.net.heads, strict=True):
            answer = head(features[name])
            told += [answer, confidence(answer)]
        return tuple(told)


def head_outputs(cut: str) -> tuple[str, str]:
    """Returns the names of an exit head's answer and confidence."""
    return f"{cut}/{ANSWER}", f"{cut}/{CONFIDENCE}"


def write_net(
    run: RunFolder,
    net: MultiExitNet,
    settings: FamilySettings,
    *,
    trained: Collection[str],
    segments: bool,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
) -> Model:
    """Exports a net with its trained heads into the run's model folder; errors as ``write_model``."""
    blocks = tuple(name for name, _ in net.backbone.blocks())
    cuts = (*thin(blocks[:-1], settings.every), blocks[-1]) if segments else ()
    heads = {name: head_outputs(name) for name in net.cut_names if name in trained and name in cuts}
    names = [ANSWER, CONFIDENCE, *cuts, *(output for name in net.cut_names for output in head_outputs(name))]
    still = copy.deepcopy(net).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    example = torch.zeros(2, *settings.config.input_shape)
    loaded = export_module(_Everything(still, cuts), (example,), input_names=[INPUT], output_names=names)
    source = compare_with_torch(loaded, still.backbone)
    loaded, precision_loss = apply_precision(loaded, settings.precision, half=cuts)
    cut = cut_graph(loaded, answers=(ANSWER,), wanted=cuts) if segments else uncut_graph(loaded)
    blueprint = Blueprint(
        name=run.name, family="resnet", task="classification", settings=settings.record(), loaded=loaded, cut=cut,
        cuts=cut.cuts, answers=(ANSWER,), confidence=CONFIDENCE, heads=heads, source=source,
        precision_loss=precision_loss,
    )  # fmt: skip
    return write_model(
        run,
        blueprint,
        inputs=inputs,
        parameters=parameters,
        extra=lambda staging: save_weights(staging / WEIGHTS_FILE, net, only=trained),
    )


def compare_with_torch(loaded: LoadedGraph, module: nn.Module) -> SourceParity:
    """Compares the first outputs of an exported graph with the torch module's on random rows.

    Raises:
        GraphError: they differ by more than 1e-4 of their magnitude.
    """
    rows = sample_rows(loaded.inputs, 3)
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(array) for array in rows.values()))
    expected = [answer] if isinstance(answer, Tensor) else list(answer)
    with open_graph(loaded.model) as runner:
        found = runner.run(rows, outputs=loaded.outputs[: len(expected)])
    pairs = zip(found.values(), expected, strict=True)
    errors = [relative_error(array, np.asarray(tensor.numpy())) for array, tensor in pairs]
    absolute, relative = max(error[0] for error in errors), max(error[1] for error in errors)
    if relative > TOLERANCE:
        raise GraphError(
            f"the exported graph differs from the torch module by {relative:.1e} of its magnitude, where "
            f"{TOLERANCE:.0e} is allowed: torch.onnx.export translated an operator in another way. Put the module in "
            "evaluation mode, or export it with another torch"
        )
    return SourceParity(label="torch", absolute=absolute, relative=relative)
