"""Graphs: tensors, cuts, segments, heads, stages, and the model folder that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from artifacts.codec import OPTIONAL, read_json, write_json
from artifacts.errors import InputError, SchemaError, UsageError, unknown_name
from artifacts.images.preprocessing import Preprocessing, name_channels
from artifacts.store import Artifact, open_artifact
from artifacts.text.preprocessing import TextPreprocessing

MODEL_JSON = "model.json"

FINAL_HEAD = "final"
"""The name of the final head among the exits: in traces, imported files and JSON results."""
FINAL_HEAD_GRAPH = f"{FINAL_HEAD}_head"
"""The name of its graph in a model folder, and of its row in the inference time matrix."""
FINAL_HEAD_LABEL = f"{FINAL_HEAD} head"
"""Its name in tables, reports and statistics."""

SAID_BY = "preprocessing_said_by"
"""The setting that names who says how a network wants its images, where that is not the recipe of its weights."""

PRECISIONS = ("fp32", "fp16", "int8", "int8-symmetric")  # of the export; it is part of the graph, so of its digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """The meaning of a quantised tensor's integers, as of ONNX's ``DequantizeLinear``: ``(q - zero_point) * scale``.

    Attributes:
        scale: of one step; a float32.
        zero_point: the integer that stands for 0.
    """

    scale: float
    zero_point: int

    def dequantise(self, array: np.ndarray) -> np.ndarray:
        """Returns the numbers that integers stand for, as float32."""
        centred = array.astype(np.int32) - np.int32(self.zero_point)
        numbers: np.ndarray = centred.astype(np.float32) * np.float32(self.scale)
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor that has the batch as leading axis.

    Attributes:
        name: its name in the graph.
        dtype: the numpy name of its element type, e.g. ``float32``.
        row_shape: the shape of one row, without the batch axis; of the largest length, where rows have several.
        length_axes: the axes of a row that are as long as the rows of the batch, 0 for the first behind the batch.
        quantised: what its integers stand for, where it holds quantised numbers; ``None``: it holds what it says.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    length_axes: tuple[int, ...] = field(default=(), metadata=OPTIONAL)
    quantised: Quantisation | None = field(default=None, metadata=OPTIONAL)

    def at_length(self, length: int) -> TensorSpec:
        """Returns the tensor as it is where rows are ``length`` long; its shape is fixed then."""
        if not self.length_axes:
            return self
        row = tuple(length if axis in self.length_axes else size for axis, size in enumerate(self.row_shape))
        return replace(self, row_shape=row, length_axes=())


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """The lengths that the rows of a network may have.

    Attributes:
        lengths: those that there are engines for, ascending; rows are padded to the next of them.
        mask: the input that is 0 at the padding of a row.
    """

    lengths: tuple[int, ...]
    mask: str

    def __post_init__(self) -> None:
        check_lengths(self.lengths)

    def bucket(self, length: int) -> int:
        """Returns the smallest length that holds rows of ``length``.

        Raises:
            InputError: none does.
        """
        for bucket in self.lengths:
            if length <= bucket:
                return bucket
        shown = ",".join(map(str, self.lengths))
        raise InputError(
            f"a row is {length} long, and the network was exported for rows up to {self.lengths[-1]}. Cut the row "
            f"there, or export and plan again with --lengths {shown},{length}"
        )


def check_lengths(lengths: tuple[int, ...]) -> None:
    """Refuses lengths that do not ascend from at least 1, or that are none."""
    if not lengths or lengths[0] < 1 or list(lengths) != sorted(set(lengths)):
        raise UsageError(f"--lengths {','.join(map(str, lengths))}: expected ascending numbers from 1, e.g. 16,32,64")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One ONNX file and its interface; segment, head, final head, stage and the whole network alike.

    Attributes:
        name: unique within its folder.
        file: POSIX path relative to the folder.
        inputs: the tensors to bind before a run.
        outputs: the tensors that a run writes.
        confidence: the output that holds one fp32 confidence per row; ``None`` for graphs that answer nothing.
        answers: the outputs that answer a query, in the order of the model's outputs; empty for a segment.
        lengths: the lengths that it is run at, ascending; empty where no tensor of its interface has a length.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    confidence: str | None = None
    answers: tuple[str, ...] = ()
    lengths: tuple[int, ...] = field(default=(), metadata=OPTIONAL)

    def at_length(self, length: int) -> GraphSpec:
        """Returns the graph as it is where rows are ``length`` long: an interface of fixed shapes."""
        if not self.lengths:
            return self
        if length not in self.lengths:
            raise unknown_name(f"length of {self.name}", str(length), list(map(str, self.lengths)))
        inputs, outputs = (tuple(spec.at_length(length) for spec in specs) for specs in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs, lengths=())

    def output(self, name: str) -> TensorSpec:
        """Returns the output called ``name``."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        raise unknown_name(f"output of {self.name}", name, [spec.name for spec in self.outputs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A place where the graph can be split in two; every tensor that crosses it has the batch as leading axis.

    Attributes:
        name: the name of the main tensor; the exit candidate at this cut has the same name.
        main: the tensor that every path from the data input to the outputs passes; exit heads read it.
        carried: tensors that bypass ``main``, an attention mask for instance; they are gathered along with it.
    """

    name: str
    main: TensorSpec
    carried: tuple[TensorSpec, ...] = ()

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (self.main, *self.carried)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The contents of ``model/``: segment ``i`` leads from cut ``i - 1`` to cut ``i``, the final head follows the last.

    Attributes:
        name: the run's name.
        family: ``resnet``, ``onnx`` ...
        task: how outputs become answers and a metric, e.g. ``classification``.
        full: the whole network, the reference, with the confidence of its answers.
        cuts: in the order of the data flow; empty when only ``full.onnx`` was exported.
        segments: as many as cuts.
        final_head: from the last cut to the model's outputs; ``None`` without cuts.
        heads: cut name -> exit head, for the cuts that have a trained one.
        settings: the family's own parameters (depth, classes ...), for the record.
        preprocessing: how the network wants its images; ``None`` where that is not recorded or the input is not an
            image.
        classes: names of the classes that it tells apart, in the order of its answers; none where they are not
            recorded.
        reference: the network before its numbers were quantised, in float32 and otherwise as ``full``; ``None`` where
            ``full`` is the reference itself.
        sequence: the lengths of its rows; ``None`` where all rows have one shape.
        text: how the network wants its texts; ``None`` where it takes something else, or no tokenizer is known. The
            tokenizer lies in the same folder.
    """

    name: str
    family: str
    task: str
    full: GraphSpec
    cuts: tuple[Cut, ...] = ()
    segments: tuple[GraphSpec, ...] = ()
    final_head: GraphSpec | None = None
    heads: Mapping[str, GraphSpec] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    text: TextPreprocessing | None = field(default=None, metadata=OPTIONAL)
    sequence: SequenceSpec | None = field(default=None, metadata=OPTIONAL)
    reference: GraphSpec | None = field(default=None, metadata=OPTIONAL)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that its rows may have; none where all rows have one shape."""
        return () if self.sequence is None else self.sequence.lengths

    @property
    def precision(self) -> str:
        """The precision that the network computes in: ``fp32``, or that of an export pass."""
        return str(self.settings.get("precision", PRECISIONS[0]))

    @property
    def candidates(self) -> tuple[Cut, ...]:
        """The exit candidates: the cuts that have an exit head."""
        return tuple(cut for cut in self.cuts if cut.name in self.heads)

    def stated_preprocessing(self) -> Preprocessing | None:
        """Returns how the network wants its images, as far as the model says so; ``None`` where it does not.

        Models of release 0.1.0 state a mean and a spread of pixels in [0, 1] among their settings; their images were
        resized whole, and had one channel of luminance or the three of RGB.
        """
        if self.preprocessing is not None or not {"mean", "std"} <= set(self.settings):
            return self.preprocessing
        row = self.full.inputs[0].row_shape
        if len(self.full.inputs) != 1 or len(row) != 3:
            return None
        order, count = name_channels(row[0])
        return Preprocessing(
            height=row[1],
            width=row[2],
            channel_order=order,
            channel_count=count,
            mean=(float(self.settings["mean"]),),
            std=(float(self.settings["std"]),),
        )

    def cut_index(self, name: str) -> int:
        """Returns the position of a cut in ``cuts``."""
        for index, cut in enumerate(self.cuts):
            if cut.name == name:
                return index
        raise unknown_name("cut", name, [cut.name for cut in self.cuts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A verified ``model/`` folder and its spec."""

    artifact: Artifact
    spec: ModelSpec

    @property
    def digest(self) -> str:
        return self.artifact.digest

    def path(self, graph: GraphSpec) -> Path:
        return self.artifact.path(graph.file)

    def whole(self) -> Model:
        """Returns the same network as if it had no cuts."""
        return replace(self, spec=replace(self.spec, cuts=(), segments=(), final_head=None, heads={}))


def open_model(folder: Path, *, remedy: str) -> Model:
    """Opens and verifies a model folder; raises the errors of ``open_artifact``."""
    artifact = open_artifact(folder, kind="model", remedy=remedy)
    spec = read_json(artifact.path(MODEL_JSON), ModelSpec)
    if len(spec.segments) != len(spec.cuts) or (spec.final_head is None) != (not spec.cuts):
        raise SchemaError(f"{folder}: segments and cuts do not match. Make it again with: {remedy}")
    return Model(artifact=artifact, spec=spec)


def write_model_spec(folder: Path, spec: ModelSpec) -> None:
    """Writes ``model.json`` into a staging folder."""
    write_json(folder / MODEL_JSON, spec)


def unknown_precision(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns a ``UsageError`` for an unknown precision, which says why there is no dynamic quantisation."""
    if "dynamic" in name.lower():
        return UsageError(
            f"{what} '{name}': dynamic quantisation scales activations by the range of the whole batch, found while it "
            "runs, so a row's answer would depend on its neighbours. Use int8, whose ranges are found beforehand, on "
            "data (docs/precision.md)"
        )
    return unknown_name(what, name, known)


def check_precision(spec: ModelSpec, wanted: str | None, *, run: Path) -> None:
    """Refuses a model whose precision is not the one that was asked for; engines take the precision from the graph.

    Raises:
        UsageError: the precision differs, with the command that exports the wanted one; or it is unknown.
    """
    if wanted is None or wanted == spec.precision:
        return
    if wanted not in PRECISIONS:
        raise unknown_precision("precision", wanted, PRECISIONS)
    source = spec.family if spec.family != "onnx" else "path/to/model.onnx"
    data = " --data DATA" if wanted.startswith("int8") else ""
    raise UsageError(
        f"--precision {wanted}: the network in {run / 'model'} is {spec.precision}, and that is part of its graph. "
        f"Export it anew, e.g. with: python -m export {source} --segments --precision {wanted}{data} "
        f"--run {run}-{wanted}"
    )
