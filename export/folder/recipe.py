"""The export recipe: how a loaded graph becomes the model folder of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import PRECISIONS, Preprocessing, UsageError, find_task, to_plain, unknown_name
from export.confidence.adding import recipes_like
from export.folder.texts import TextSource
from export.nets.table import HEADS
from export.options import ANSWERS, INPUTS, ExportOptions, RowSource
from export.pixels.statements import Settled, Statement, record_statements

TASK = "classification"
"""What answers mean where nobody says it."""
FORMAT = 1  # of what an export writes; another one makes every model folder stale
RECIPE = "confidence_recipe"
"""The setting that names the recipe of the confidences, where that is not the task's."""
CONFIDENCE = "confidence"
"""The name of the confidence among a graph's outputs; that of an exit is ``<cut>/confidence``."""
_NOTHING_SAID = Settled()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceParity:
    """The distance of an exported graph from what it was made of.

    Attributes:
        label: what that was, for the report.
        absolute, relative: largest errors over all outputs.
    """

    label: str = ""
    absolute: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The provenance of a model folder, for its manifest.

    Attributes:
        inputs: name -> digest of what it was made from.
        parameters: what else decides the content.
        command: the command line that makes it again; ``None``: there is none, a Python module was exported.
    """

    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportRecipe:
    """The way from a loaded graph to a model folder.

    Attributes:
        family: a family's name, or ``onnx``.
        settings: of the model, for the record.
        answers: the outputs that the network answers with; the graph may have more, those of exit heads for instance.
        provenance: for the manifest.
        task: what the answers mean; it decides how the confidence is computed.
        terms: of the answers, ``logits`` or ``probabilities``; ``None``: found out from their values.
        preprocessing: how the network wants its images; ``None``: not known, or they are not images.
        classes: names of the classes in the order of the answers; none where they are not known.
        said_by: who says so, for the record; empty: nobody, or the recipe of the weights.
        takes_bytes: the preprocessing's numbers shall become part of the graph, which then takes uint8.
        segments: cut the network; otherwise ``full.onnx`` alone.
        cuts: the tensors that must be its cuts, in order; ``None``: those that are found.
        further: names of further features that exit heads read, of the same precision as the cuts.
        every: of cuts that are found, every ``every``-th is used.
        heads: cut name -> the output of the graph with the answer of its exit head.
        precision: one of ``artifacts.PRECISIONS``.
        form: a small form that answers are brought to, one of ``SMALL_ANSWERS``; ``None``: they stay as they are.
        confidence: the recipe of the confidences; ``None``: the task's.
        source: how far the graph is from what it was made of.
        text: how the network wants its texts; ``None``: it takes something else, or no tokenizer is known.
        rows: real rows, for a precision that is calibrated; ``None``: there are none.
        extra_files: writes further files into the staging folder, the weights of a torch family for instance.
    """

    family: str
    settings: Mapping[str, str | int | float | bool]
    answers: tuple[str, ...]
    provenance: Provenance
    task: str = TASK
    terms: str | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    said_by: str = ""
    takes_bytes: bool = False
    segments: bool = True
    cuts: tuple[str, ...] | None = None
    further: tuple[str, ...] = ()
    every: int = 1
    heads: Mapping[str, str] = field(default_factory=dict)
    precision: str = PRECISIONS[0]
    form: str | None = None
    confidence: str | None = None
    source: SourceParity = SourceParity()
    text: TextSource | None = None
    rows: RowSource | None = None
    extra_files: Callable[[Path], None] | None = None


def graph_parameters(options: ExportOptions, statements: Sequence[Statement] = ()) -> dict[str, Any]:
    """Returns what, besides the graph, decides the model folder of an imported graph."""
    return {
        "format": FORMAT, "family": "onnx", "segments": options.segments, "every": options.every or 1,
        "head": options.head or HEADS[0], "input_shapes": to_plain(options.input_shapes),
        **precision_record(options.precision), **input_record(options.input), **record_statements(statements),
        **length_record(options.lengths), **data_record(options.data),
        **({} if options.length is None else {"length": options.length}),
        **({} if options.task in (None, TASK) else {"task": options.task}),
    }  # fmt: skip


def graph_recipe(
    options: ExportOptions, answers: tuple[str, ...], source: SourceParity, provenance: Provenance,
    settled: Settled = _NOTHING_SAID,
) -> ExportRecipe:  # fmt: skip
    """Returns how an imported graph becomes a model folder."""
    every = options.every or 1
    return ExportRecipe(
        family="onnx",
        settings={"every": every, "head": options.head or HEADS[0], "source": source.label},
        answers=answers,
        provenance=provenance,
        task=options.task or TASK,
        preprocessing=settled.preprocessing,
        said_by=settled.origin,
        takes_bytes=options.input != INPUTS[0],
        segments=options.segments,
        every=every,
        precision=options.precision,
        rows=options.rows,
        source=source,
    )


def input_record(kind: str) -> dict[str, str]:
    """Returns what settings and parameters say of an input that takes bytes; nothing of the usual one, as below."""
    return {} if kind == INPUTS[0] else {"input": kind}


def check_answers(form: str | None, task: str) -> str | None:
    """Returns the small form of answers that was asked for; ``None`` for what a network says as it is.

    Raises:
        UsageError: it is not of the task.
    """
    if form is None:
        return None
    if ANSWERS[form] != task:
        raise UsageError(f"--answers {form} is for the task {ANSWERS[form]}; this network's is {task}")
    as_it_is = next(name for name, its_task in ANSWERS.items() if its_task == task)
    return None if form == as_it_is else form


def check_confidence(name: str | None, task: str) -> str | None:
    """Returns the recipe of the confidences that was asked for; ``None`` for the task's own.

    Raises:
        UsageError: there is none of that name for such answers.
    """
    own = find_task(task).confidence
    if name is None or name == own:
        return None
    if name not in recipes_like(own):
        raise unknown_name(f"confidence for the task {task}", name, recipes_like(own))
    return name


def answers_record(form: str | None) -> dict[str, str]:
    """Returns what settings and parameters say of a small form of answers."""
    return {} if form is None else {"answers": form}


def length_record(lengths: tuple[int, ...]) -> dict[str, list[int]]:
    """Returns what parameters say of the lengths of rows; nothing where all rows have one shape."""
    return {"lengths": list(lengths)} if lengths else {}


def data_record(data: str | None) -> dict[str, str]:
    """Returns what parameters say of the data that a precision is calibrated on; nothing where none is."""
    if data is None:
        return {}
    return {"data": str(Path(data).absolute()) if Path(data).exists() else data}


def precision_record(precision: str) -> dict[str, str]:
    """Returns what settings and parameters say of a precision.

    Nothing of the usual one, so that a model folder from before there were others is not stale.
    """
    return {} if precision == PRECISIONS[0] else {"precision": precision}
