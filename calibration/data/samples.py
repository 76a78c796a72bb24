"""Samples: the seam between calibration and data of any kind and size.

A host's own data goes in as an object with these methods. Nothing here assumes that all data lies in memory: inputs and
targets are asked for by index, a batch at a time. The digests of the data and of the index set of each part go into
every artifact made from them, so that anybody can check that no part was used twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from artifacts import InputError, Model, Preprocessing, TensorSpec, UsageError

PARTS = ("train", "calibrate", "test")


@runtime_checkable
class Samples(Protocol):
    """Data in three disjoint parts, with the right answers or without.

    ``digests`` names at least ``images`` (the inputs, whatever they are) and ``indices.<part>`` for every part, and
    ``labels`` where there are targets; equal data has equal digests.
    """

    @property
    def name(self) -> str:
        """The name of the data in messages and records."""

    @property
    def labelled(self) -> bool:
        """Whether the right answers are given."""

    def indices_of(self, part: str, /) -> np.ndarray:
        """Returns the ascending int64 indices of a part: ``train``, ``calibrate`` or ``test``; none: an empty one."""

    def inputs(self, indices: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's inputs for some samples: input name -> (n, ...), ready for the network."""

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns the right answers (n, ...) of some samples, as the task wants them."""

    def digests(self) -> Mapping[str, str]:
        """Returns the SHA-256 digests of the inputs, the targets and the index set of each part."""


@runtime_checkable
class ImageSamples(Samples, Protocol):
    """Samples that are images, whose pixels training may augment."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to a row of the network's input."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; none without labels."""

    @property
    def split_seed(self) -> int | None:
        """The seed that decided about the parts; ``None`` where the data came with them."""

    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns uint8 images in the network's size and layout, before they are normalised."""

    def prepare(self, pixels: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's inputs for pixels as ``pixels`` returns them, augmented or not."""


def check_parts(name: str, parts: Mapping[str, np.ndarray], *, count: int) -> None:
    """Refuses parts that overlap, or that name samples which do not exist.

    Raises:
        InputError: they do.
    """
    together = np.concatenate([parts[part] for part in PARTS])
    if len(np.unique(together)) != len(together):
        raise InputError(f"{name}: the parts {', '.join(PARTS)} overlap; every sample belongs to one of them")
    if len(together) and not 0 <= together.min() <= together.max() < count:
        raise InputError(f"{name}: the parts name samples from {together.min()} to {together.max()}, there are {count}")


def check_inputs(samples: Samples, model: Model) -> None:
    """Compares the first sample's inputs with those that a network takes.

    Raises:
        InputError: other names, types or shapes, or there are no samples at all.
    """
    first = next((samples.indices_of(part)[:1] for part in PARTS if len(samples.indices_of(part))), None)
    if first is None:
        raise InputError(f"{samples.name} has no samples in any of its parts {', '.join(PARTS)}")
    inputs = samples.inputs(first)
    expected = {spec.name: (spec.dtype, (1, *_row_shape(spec, inputs))) for spec in model.spec.full.inputs}
    found = {name: (str(array.dtype), array.shape) for name, array in inputs.items()}
    if found != expected:
        raise InputError(
            f"{samples.name} does not fit {model.spec.name}: one sample has the inputs {_describe(found)}; the network "
            f"takes {_describe(expected)}"
        )


def _row_shape(spec: TensorSpec, inputs: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the shape of a row at the length that the inputs have, whatever it is."""
    given = inputs.get(spec.name)
    if not spec.length_axes or given is None or given.ndim != len(spec.row_shape) + 1:
        return spec.row_shape
    return spec.at_length(given.shape[1 + spec.length_axes[0]]).row_shape


def _describe(inputs: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"'{name}' {dtype} {shape}" for name, (dtype, shape) in sorted(inputs.items()))


def labels_missing(name: str) -> UsageError:
    """Returns the error for targets that are asked of samples without labels."""
    return UsageError(
        f"{name} has no labels, and this cannot be done without; name labelled data with --data: a folder "
        "with one sub-folder per class, or an .npz with images and labels"
    )


Batch = np.ndarray | Mapping[str, np.ndarray]
"""What a runtime is handed: the array of a network's only input, or arrays by input name."""


def as_batch(inputs: Mapping[str, np.ndarray]) -> Batch:
    """Returns the inputs of some samples as a runtime takes them fastest: the array alone where there is one input."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def in_chunks(indices: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Yields the indices in their order, ``rows`` at a time; the last chunk may be smaller."""
    for start in range(0, len(indices), rows):
        yield indices[start : start + rows]
