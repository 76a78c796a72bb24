"""Torch families: a net is built, given its weights, exported with its trained heads, and published."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import (
    PRECISIONS,
    GraphError,
    Preprocessing,
    RunFolder,
    TensorSpec,
    UsageError,
    file_digest,
    open_artifact,
)
from export.confidence.recipe import LOGITS
from export.cuts.thinning import thin
from export.folder.pipeline import ExportResult, publish_model, reuse_model
from export.folder.recipe import (
    EXPORT_PREFIX,
    FORMAT,
    RECIPE,
    ExportRecipe,
    Provenance,
    answers_record,
    check_answers,
    check_confidence,
    input_record,
    precision_record,
)
from export.folder.writing import is_model_current
from export.from_torch.graphs import export_module
from export.from_torch.modules import compare_with_torch
from export.nets.family import Family, replace_options, settle_options
from export.nets.heads import answer_features, features_read
from export.nets.multi_exit import MultiExitNet, backbone_cuts
from export.nets.shipped_weights import RECIPE_JSON, WEIGHTS_FILE, Recipe, find_pretrained, read_recipe
from export.nets.table import HEADS, NetConfig, find_family
from export.nets.weights import load_weights, read_weights, save_weights, split_heads, strip_parallel
from export.options import INPUTS, PRETRAINED, RANDOM, ExportOptions
from export.pixels.statements import Statement, read_statement, record_statements, settle_preprocessing

INPUT = "input"
ANSWER = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetSettings:
    """What a family's net is built from, and what ``model.json`` records of it.

    Attributes:
        family: the family.
        config: its options.
        every, head: where exits sit and what their heads look like.
        weights: where the weights came from, for the record.
        preprocessing: how the weights want their images; ``None``: not known.
        precision: of the graphs; the net itself, and its weights, stay in float32.
        input: ``float``, or ``uint8`` where the graphs scale and normalise images themselves; the net itself does not.
        answers: what the graphs answer with, one of ``ANSWERS``; ``None``: what the net says as it is.
        confidence: the recipe of their confidences; ``None``: the task's.
        said: what the user said about the images; ``None``: nothing.
    """

    family: Family
    config: NetConfig
    every: int
    head: str
    weights: str
    preprocessing: Preprocessing | None = None
    precision: str = PRECISIONS[0]
    input: str = INPUTS[0]
    answers: str | None = None
    confidence: str | None = None
    said: Statement | None = None

    def record(self) -> dict[str, str | int | float | bool]:
        """Returns the settings of ``model.json``."""
        return {
            **self.family.record(self.config), "every": self.every, "head": self.head, "weights": self.weights,
            **precision_record(self.precision), **input_record(self.input), **answers_record(self.answers),
            **({} if self.confidence is None else {RECIPE: self.confidence}),
        }  # fmt: skip

    def parameters(self, *, segments: bool) -> dict[str, Any]:
        """Returns what, besides the weights, decides the model folder; with the names of release 0.1.0."""
        pixels = self.preprocessing
        return {
            "format": FORMAT, "family": self.family.name, "segments": segments, **self.record(),
            "confidence": "softmax", "data_input": INPUT,
            **({} if pixels is None else {"mean": _one_or_all(pixels.mean), "std": _one_or_all(pixels.std)}),
            **record_statements([] if self.said is None else [self.said]),
        }  # fmt: skip


def _one_or_all(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def read_net_settings(
    family_name: str, settings: Mapping[str, Any], preprocessing: Preprocessing | None
) -> NetSettings:  # fmt: skip
    """Reads the settings of a family's ``model.json``."""
    family = find_family(family_name)
    return NetSettings(
        family=family, config=family.read(settings), every=settings["every"], head=settings["head"],
        weights=settings["weights"], preprocessing=preprocessing,
        precision=settings.get("precision", PRECISIONS[0]), input=settings.get("input", INPUTS[0]),
        answers=settings.get("answers"), confidence=settings.get(RECIPE),
    )  # fmt: skip


def export_family(
    run: RunFolder, family: Family, options: ExportOptions, *, report: Callable[[str], None]
) -> ExportResult:  # fmt: skip
    """Exports a net of a family, or reuses what is there; errors as ``export_model``."""
    config, given = options.net or family.config(), _GivenWeights()
    if options.weights == PRETRAINED:
        config, given = _find_shipped(family, config)
    elif options.weights != RANDOM:
        config, given = _read_given(family, config, Path(options.weights))
    recipe = given.recipe
    said = None if options.preprocess is None else read_statement(options.preprocess)
    image = TensorSpec(name=INPUT, dtype="float32", row_shape=tuple(config.input_shape))
    settled = settle_preprocessing([] if said is None else [said], [image])
    settings = NetSettings(
        family=family,
        config=config,
        every=options.every or (recipe.every if recipe else 1),
        head=options.head or (recipe.head if recipe else HEADS[0]),
        weights=options.weights if options.weights in (PRETRAINED, RANDOM) else Path(options.weights).name,
        preprocessing=settled.preprocessing or (recipe.preprocessing if recipe else None),
        precision=options.precision,
        input=options.input,
        answers=check_answers(options.answers, family.task),
        confidence=check_confidence(options.confidence, family.task),
        said=said,
    )
    provenance = Provenance(
        inputs={f"{EXPORT_PREFIX}weights": file_digest(given.file)} if given.file else {},
        parameters=settings.parameters(segments=options.segments),
        command=options.command(run),
    )
    if is_model_current(run, provenance):
        report(f"{run.model} is up to date")
        return reuse_model(run)
    own = settings.preprocessing
    for note in settled.notes if said or own is None else [f"images, as the weights' recipe says: {own.describe()}"]:
        report(note)
    shape = "x".join(map(str, config.input_shape))
    report(
        f"exporting {family.title(config)} ({settings.weights} weights) with {config.classes} classes and input "
        f"{shape} into {run.model}"
    )
    net, trained = build_net(settings, given.state, where=str(given.file))
    return publish_family(run, net, settings, trained=trained, segments=options.segments, provenance=provenance)


@dataclass(frozen=True, slots=True, kw_only=True)
class _GivenWeights:
    """Weights, where they come from, and what a recipe beside them says; nothing of that for a random start."""

    file: Path | None = None
    state: Mapping[str, Tensor] | None = None
    recipe: Recipe | None = None


def _find_shipped(family: Family, config: NetConfig) -> tuple[NetConfig, _GivenWeights]:
    """Returns the weights that ship with PAME for just these options; where none were given, those of the family."""
    folder = find_pretrained(family.name, family.record(config))
    if folder is None and config == family.config():
        folder = find_pretrained(family.name, None)
    if folder is None:
        raise UsageError(
            f"no weights are shipped for {family.title(config)} with {config.classes} classes and input "
            f"{','.join(map(str, config.input_shape))}. Give some with --weights FILE, or start with --weights random"
        )
    artifact = open_artifact(folder, kind="weights", remedy="pip install --force-reinstall pame")
    file, recipe = artifact.path(WEIGHTS_FILE), read_recipe(folder)
    return family.read(recipe.options), _GivenWeights(file=file, state=read_weights(file), recipe=recipe)


def _read_given(family: Family, config: NetConfig, path: Path) -> tuple[NetConfig, _GivenWeights]:
    """Reads weights of one's own, or of others, and settles with them which network of the family it is."""
    state = read_weights(path)
    recipe = read_recipe(path.parent) if (path.parent / RECIPE_JSON).is_file() else None
    if recipe is not None and recipe.family != family.name:
        raise UsageError(
            f"--weights {path}: {RECIPE_JSON} beside it says that they are of the family '{recipe.family}', not of "
            f"'{family.name}'. Export that family: python -m export {recipe.family} --weights {path}"
        )
    if recipe is not None and config.input_shape == family.config().input_shape:
        config = replace_options(config, input_shape=family.read(recipe.options).input_shape)
    if family.fit_state is None:
        return config, _GivenWeights(file=path, state=state, recipe=recipe)
    backbone, heads = split_heads(state)
    try:
        fitted = family.fit_state(strip_parallel(backbone))
    except GraphError as error:
        raise GraphError(f"--weights {path}: {error}") from error
    settled = settle_options(family, config, fitted, where=str(path))
    return settled, _GivenWeights(file=path, state={**fitted.state, **heads}, recipe=recipe)


def build_net(
    settings: NetSettings, state: Mapping[str, Tensor] | None, *, where: str
) -> tuple[MultiExitNet, tuple[str, ...]]:
    """Builds a net and loads its weights; untrained parts are drawn with seed 0.

    Args:
        settings: which net.
        state: its weights in the family's names; ``None``: all is drawn.
        where: names them in messages.

    Returns:
        The net in evaluation mode, and the cuts whose heads were loaded.

    Raises:
        GraphError: the weights do not fit the net.
    """
    family, config = settings.family, settings.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = family.build(config)
        cuts = backbone_cuts(backbone, config.input_shape)
        net = MultiExitNet(backbone, {
            cut.name: family.build_head(
                cut, cuts[cuts.index(cut) + 1 :], classes=config.classes, kind=settings.head
            )
            for cut in thin(cuts[:-1], settings.every)
        })  # fmt: skip
    trained = () if state is None else load_weights(net, state, where=where)
    net.eval()
    return net, trained


class _WithFeatures(nn.Module):
    """A net with intermediate outputs: logits, the features at some cuts and of finer strides, and what some
    heads answer."""

    def __init__(
        self, net: MultiExitNet, cuts: tuple[str, ...], heads: Collection[str], further: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.backbone = net.backbone
        self.kept = (*cuts, *further)
        chosen = {name: head for name, head in zip(net.cut_names, net.heads, strict=True) if name in heads}
        self.head_names = tuple(chosen)
        self.heads = nn.ModuleList(chosen.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.backbone.forward_with_features(x)
        exits = zip(self.head_names, self.heads, strict=True)
        answers = [answer_features(head, features, name) for name, head in exits]
        return (logits, *(features[name] for name in self.kept), *answers)


def publish_family(
    run: RunFolder,
    net: MultiExitNet,
    settings: NetSettings,
    *,
    trained: Collection[str],
    segments: bool,
    provenance: Provenance,
) -> ExportResult:
    """Exports a net with its trained heads into the run's model folder; errors as ``publish_model``."""
    blocks = tuple(name for name, _ in net.backbone.blocks())
    cuts = (*thin(blocks[:-1], settings.every), blocks[-1]) if segments else ()
    still = copy.deepcopy(net).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    read = dict.fromkeys(name for head in net.heads for name in features_read(head))
    further = tuple(name for name in read if name not in cuts) if segments else ()
    chosen = [name for name in net.cut_names if name in trained and name in cuts]
    module = _WithFeatures(still, cuts, chosen, further)
    heads = {name: f"{name}/{ANSWER}" for name in module.head_names}
    example = torch.zeros(2, *settings.config.input_shape)
    names = [ANSWER, *cuts, *further, *heads.values()]
    loaded = export_module(module, (example,), input_names=[INPUT], output_names=names)
    recipe = ExportRecipe(
        family=settings.family.name,
        settings=settings.record(),
        answers=(ANSWER,),
        provenance=provenance,
        task=settings.family.task,
        terms=LOGITS,
        preprocessing=settings.preprocessing,
        said_by="" if settings.said is None else settings.said.origin,
        takes_bytes=settings.input != INPUTS[0],
        segments=segments,
        cuts=cuts if segments else None,
        further=further,
        heads=heads,
        precision=settings.precision,
        form=settings.answers,
        confidence=settings.confidence,
        source=compare_with_torch(loaded, still.backbone),
        extra_files=lambda staging: save_weights(staging / WEIGHTS_FILE, net, only=trained),
    )
    return publish_model(run, loaded, recipe)
