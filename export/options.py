"""What an export was asked for: one validated value, from which the command line takes its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from artifacts import PRECISIONS, Cut, UsageError, unknown_name

T = TypeVar("T")

FAMILIES = ("resnet",)
LATER_FAMILIES = ("bert", "posenet", "segmentation", "vgg16")
HEADS = ("pooled", "complex", "simple")  # the first is the default
PRETRAINED = "pretrained"
RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export and how.

    Attributes:
        source: a family's name, or the path of an ``.onnx`` file.
        segments: also cut the network; otherwise ``full.onnx`` alone.
        depth: which ResNet.
        classes: number of classes of a family.
        input_shape: (channels, height, width) of a family's images.
        input_shapes: input name -> row shape, for ONNX inputs whose shape the file leaves open.
        weights: ``pretrained``, ``random`` or the path of a ``.safetensors`` or ``.pth`` file; families only.
        every: keep every ``every``-th cut as an exit candidate; ``None``: as the weights were trained, else 1.
        head: architecture of untrained exit heads; ``None``: as the weights were trained, else ``pooled``.
        precision: what the network shall compute in, one of ``artifacts.PRECISIONS``; see ``export.precision.fp16``.
    """

    source: str = "resnet"
    segments: bool = True
    depth: int = 32
    classes: int = 10
    input_shape: tuple[int, int, int] = (1, 28, 28)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: str = PRETRAINED
    every: int | None = None
    head: str | None = None
    precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        if not self.is_file:
            if self.source in LATER_FAMILIES:
                raise UsageError(
                    f"the family '{self.source}' is not available yet; there are {', '.join(FAMILIES)} "
                    "and any .onnx file: python -m export path/to/model.onnx --segments"
                )
            if self.source not in FAMILIES:
                raise unknown_name("family", self.source, (*FAMILIES, *LATER_FAMILIES))
            if self.input_shapes:
                raise UsageError(
                    f"--input-shape NAME:... is for .onnx files; for {self.source} say --input-shape 1,28,28"
                )
        if self.every is not None and self.every < 1:
            raise UsageError(f"--every {self.every}: expected a number from 1")
        if self.precision == "int8":
            raise UsageError(
                "--precision int8 is not available yet. Quantise the network with a tool that writes Q/DQ nodes "
                "(onnxruntime.quantization, ModelOpt) and export that file: python -m export path/to/quantised.onnx"
            )
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.head is not None and self.head not in HEADS:
            raise unknown_name("head kind", self.head, HEADS)

    @property
    def is_file(self) -> bool:
        """Is the source an ONNX file rather than a family?"""
        return self.source.endswith(".onnx")


def thin(cuts: tuple[T, ...], every: int) -> tuple[T, ...]:
    """Keeps every ``every``-th cut: the ``every``-th, the ``2 * every``-th and so on.

    Raises:
        UsageError: ``every`` is no positive number or leaves none.
    """
    if every < 1:
        raise UsageError(f"--every {every}: expected a number from 1")
    kept = cuts[every - 1 :: every]
    if cuts and not kept:
        raise UsageError(f"--every {every} leaves none of {len(cuts)} candidates; use at most {len(cuts)}")
    return kept


def thin_cuts(cuts: tuple[Cut, ...], every: int) -> tuple[Cut, ...]:
    """Keeps every ``every``-th cut, and the last one, which is never an exit candidate; errors as ``thin``."""
    return (*thin(cuts[:-1], every), cuts[-1])
