"""Torch families: a net is built, given its weights, exported with its trained heads, and published."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import (
    PRECISIONS,
    Model,
    Preprocessing,
    RunFolder,
    UsageError,
    file_digest,
    find_task,
    unknown_name,
)
from export.confidence.recipe import LOGITS
from export.cuts.thinning import thin
from export.folder.pipeline import ExportResult, publish_model, reuse_model
from export.folder.recipe import (
    FORMAT,
    RECIPE,
    ExportRecipe,
    Provenance,
    answers_record,
    check_answers,
    check_confidence,
    data_record,
    input_record,
    length_record,
    precision_record,
)
from export.folder.texts import EXPORT_PREFIX, TextSource, find_text_source, kept_text_source
from export.folder.writing import is_model_current
from export.from_torch.given_weights import Adapt, GivenWeights, find_weights
from export.from_torch.graphs import export_module
from export.from_torch.modules import compare_with_torch
from export.nets.family import Family
from export.nets.heads import answer_features, features_read, mask_of
from export.nets.multi_exit import MultiExitNet, backbone_cuts, example_rows
from export.nets.shipped_weights import WEIGHTS_FILE
from export.nets.table import NetConfig, find_family
from export.nets.weights import load_weights, save_weights
from export.options import ANSWERS, INPUTS, ExportOptions, RowSource
from export.pixels.statements import Settled, Statement, read_statement, record_statements, settle_preprocessing

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
        text: how a network of tokens wants its texts, and its tokenizer; ``None``: no tokenizer is known.
        task: what its answers mean.
        classes: names of its classes; none where they are not known.
        lengths: that its rows may have, the last that of its options; none: all rows have one shape.
        data, rows: as of ``ExportOptions``: what a precision is calibrated on.
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
    text: TextSource | None = None
    task: str = "classification"
    classes: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    data: str | None = None
    rows: RowSource | None = None

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
            "confidence": "softmax", "data_input": self.family.inputs(self.config)[0].name,
            **({} if pixels is None else {"mean": _one_or_all(pixels.mean), "std": _one_or_all(pixels.std)}),
            **record_statements([] if self.said is None else [self.said]),
            **({} if self.task == self.family.task else {"task": self.task}),
            **({} if self.text is None else self.text.record()),
            **length_record(self.lengths), **data_record(self.data),
        }  # fmt: skip


def _one_or_all(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def read_net_settings(model: Model, preprocessing: Preprocessing | None) -> NetSettings:
    """Reads the settings of a family's model folder."""
    spec, settings = model.spec, model.spec.settings
    family = find_family(spec.family)
    return NetSettings(
        family=family, config=family.read(settings), every=int(settings["every"]), head=str(settings["head"]),
        weights=str(settings["weights"]), preprocessing=preprocessing,
        text=kept_text_source(model), task=spec.task, classes=spec.classes, lengths=spec.lengths,
        precision=str(settings.get("precision", PRECISIONS[0])), input=str(settings.get("input", INPUTS[0])),
        answers=_word(settings.get("answers")), confidence=_word(settings.get(RECIPE)),
    )  # fmt: skip


def _word(value: object) -> str | None:
    return None if value is None else str(value)


def export_family(
    run: RunFolder, family: Family, options: ExportOptions, *, report: Callable[[str], None]
) -> ExportResult:  # fmt: skip
    """Exports a net of a family, or reuses what is there; errors as ``export_model``."""
    found = find_weights(family, options)
    said = None if options.preprocess is None else read_statement(options.preprocess)
    inputs = family.inputs(found.config)
    settled = settle_preprocessing([] if said is None else [said], inputs)
    settings = _settle(family, options, found, settled, said)
    provenance = Provenance(
        inputs={
            **({f"{EXPORT_PREFIX}weights": file_digest(found.file)} if found.file else {}),
            **({} if settings.text is None else settings.text.digests()),
        },
        parameters=settings.parameters(segments=options.segments),
        command=options.command(run),
    )
    if is_model_current(run, provenance):
        report(f"{run.model} is up to date")
        return reuse_model(run)
    _say_preparation(settings, settled, report)
    rows = ", ".join("x".join(map(str, spec.row_shape)) for spec in inputs)
    report(
        f"exporting {family.title(found.config)} ({settings.weights} weights) with {found.config.classes} classes and "
        f"input {rows} into {run.model}"
    )
    net, trained, drawn = build_net(settings, found.state, where=str(found.file), adapt=found.adapt)
    if drawn:
        report(
            f"note: {settings.weights} has no final head for this task ({', '.join(drawn)}), so one is drawn at "
            f"random. Train it with the exits: {run.remedy('calibration')} --train joint --data DIR"
        )
    return publish_family(run, net, settings, trained=trained, segments=options.segments, provenance=provenance)


def _settle(
    family: Family, options: ExportOptions, found: GivenWeights, settled: Settled, said: Statement | None
) -> NetSettings:  # fmt: skip
    recipe = found.recipe
    head = options.head or (recipe.head if recipe else family.head_kinds[0])
    if head not in family.head_kinds:
        raise unknown_name(f"--head of the family {family.name}", head, family.head_kinds)
    flags = (("--tokenizer", options.tokenizer), ("--length", options.length), ("--lengths", options.lengths))
    for name, value in flags:
        if value and not family.reads_text:
            raise UsageError(f"{name}: the family {family.name} takes no texts; omit the flag")
    task = options.task or (recipe.task if recipe else None) or family.task
    find_task(task)
    if task != family.task and {task, family.task} & set(ANSWERS.values()):
        raise UsageError(f"--task {task}: the family {family.name} answers with {family.task}; omit the flag")
    text = None
    if family.reads_text:
        beside = [] if found.file is None else [found.file.parent]
        text = find_text_source(options.tokenizer, beside, family.inputs(found.config))
        if text is not None:
            text.check_vocabulary(found.config)
    return NetSettings(
        family=family, config=found.config, every=options.every or (recipe.every if recipe else 1), head=head,
        weights=found.label,
        preprocessing=settled.preprocessing or (recipe.preprocessing if recipe else None),
        precision=options.precision, input=options.input, said=said, text=text, task=task,
        answers=check_answers(options.answers or family.answers, task),
        confidence=check_confidence(options.confidence, task),
        classes=found.classes or (recipe.classes if recipe else ()), lengths=options.lengths,
        data=options.data, rows=options.rows,
    )  # fmt: skip


def _say_preparation(settings: NetSettings, settled: Settled, report: Callable[[str], None]) -> None:
    """Says how images, or texts, will be prepared, and who says so."""
    own = settings.preprocessing
    if settings.text is not None:
        report(f"texts are {settings.text.wanted.describe()} ({settings.text.tokenizer})")
    elif settings.family.reads_text:
        report(
            "note: no tokenizer is known, so the network takes token ids alone; name its tokenizer.json with "
            "--tokenizer FILE, and it takes texts"
        )
    for note in (
        settled.notes if settings.said or own is None else [f"images, as the weights' recipe says: {own.describe()}"]
    ):
        report(note)


def build_net(
    settings: NetSettings, state: Mapping[str, Tensor] | None, *, where: str, adapt: Adapt | None = None
) -> tuple[MultiExitNet, tuple[str, ...], list[str]]:
    """Builds a net and loads its weights; untrained parts are drawn with seed 0.

    Args:
        settings: which net.
        state: its weights; ``None``: all is drawn.
        where: names them in messages.
        adapt: as in ``NetWeights``; ``None``: the weights have the net's own names.

    Returns:
        The net in evaluation mode, the cuts whose heads were loaded, and the parameters of the backbone that the file
        lacks.

    Raises:
        GraphError: the weights do not fit the net.
    """
    family, config = settings.family, settings.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = family.build(config)
        cuts = backbone_cuts(backbone, family.inputs(config))
        net = MultiExitNet(backbone, {
            cut.name: family.build_head(
                cut, cuts[cuts.index(cut) + 1 :], classes=config.classes, kind=settings.head
            )
            for cut in thin(cuts[:-1], settings.every)
        })  # fmt: skip
    trained: tuple[str, ...] = ()
    drawn: list[str] = []
    if state is not None:
        own = state
        if adapt is not None:
            own, drawn = adapt(state, net.backbone.state_dict())
        trained = load_weights(net, own, where=where)
    net.eval()
    return net, trained, drawn


class _WithFeatures(nn.Module):
    """A net with intermediate outputs: logits, features at some cuts and what they carry, answers of some heads."""

    def __init__(
        self, net: MultiExitNet, cuts: tuple[str, ...], heads: Collection[str], further: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.backbone = net.backbone
        self.kept = (*cuts, *further)
        chosen = {name: head for name, head in zip(net.cut_names, net.heads, strict=True) if name in heads}
        self.head_names = tuple(chosen)
        self.heads = nn.ModuleList(chosen.values())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.backbone.forward_with_features(*inputs)
        heads = zip(self.head_names, self.heads, strict=True)
        answers = [answer_features(head, features, name) for name, head in heads]
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
    inputs = settings.family.inputs(settings.config)
    carried = [spec.name for spec in backbone_cuts(still.backbone, inputs)[0].carried]
    read = [name for head in net.heads if mask_of(head) is None for name in features_read(head)]
    further = tuple(name for name in dict.fromkeys((*carried, *read)) if name not in cuts) if segments else ()
    chosen = [name for name in net.cut_names if name in trained and name in cuts]
    module = _WithFeatures(still, cuts, chosen, further)
    heads = {name: f"{name}/{ANSWER}" for name in module.head_names}
    names = [ANSWER, *module.kept, *heads.values()]
    loaded = export_module(
        module, example_rows(inputs), input_names=[spec.name for spec in inputs], output_names=names,
        lengths=settings.lengths,
    )  # fmt: skip
    recipe = ExportRecipe(
        family=settings.family.name,
        settings=settings.record(),
        answers=(ANSWER,),
        provenance=provenance,
        task=settings.task,
        text=settings.text,
        classes=settings.classes,
        terms=LOGITS,
        preprocessing=settings.preprocessing,
        said_by="" if settings.said is None else settings.said.origin,
        takes_bytes=settings.input != INPUTS[0],
        segments=segments,
        cuts=cuts if segments else None,
        further=tuple(name for name in further if name in read),  # masks stay in float32
        heads=heads,
        precision=settings.precision,
        rows=settings.rows,
        form=settings.answers,
        confidence=settings.confidence,
        source=compare_with_torch(loaded, still.backbone),
        extra_files=lambda staging: save_weights(staging / WEIGHTS_FILE, net, only=trained),
    )
    return publish_model(run, loaded, recipe)
