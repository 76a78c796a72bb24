"""Mini-batches of samples for training, drawn (and images augmented) from a seed and an epoch alone.

Samples are decoded by worker processes, ahead of the training. A batch holds the same whatever their number: what is
random in it depends on the seed, the epoch and its own number.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from artifacts import InputError, PameError, UsageError, allowed_processors
from calibration.data.files import FileImages
from calibration.data.samples import ImageSamples, Samples, in_chunks
from calibration.dense.samples import DenseImages, Moves
from calibration.text.samples import TextSamples
from calibration.training.config import FrozenConfig, JointConfig

_GROUPED = 50
_AHEAD = 2  # chunks that each worker holds ready


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some samples, ready for the network.

    Attributes:
        inputs: input name -> (n, ...).
        targets: (n, ...); ``None`` where the samples have no labels.
    """

    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray | None


def training_indices(samples: Samples, config: FrozenConfig | JointConfig) -> np.ndarray:
    """Returns the ascending indices of the train part; with ``config.samples`` as many of them, drawn at random.

    Raises:
        InputError: there are none.
    """
    available = samples.indices_of("train")
    if len(available) == 0:
        raise InputError(
            f"{samples.name} has no samples in its train part; name some with --parts, e.g. train=calibrate:0.5"
        )
    if config.samples is None or config.samples >= len(available):
        return available
    drawn = np.random.default_rng(config.seed).permutation(available)[: config.samples]
    return np.sort(drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which rows of every batch one process trains on, and in how many pieces.

    Attributes:
        rank: of the process, from 0.
        count: of all processes.
        pieces: into which its rows are divided.
    """

    rank: int = 0
    count: int = 1
    pieces: int = 1

    def size(self, batch_size: int) -> int:
        """Returns the rows of one piece.

        Raises:
            UsageError: the batch cannot be divided so.
        """
        parts = self.count * self.pieces
        if batch_size % parts or batch_size // parts < 2:
            raise UsageError(
                f"a batch of {batch_size} cannot be divided among {self.count} processes with {self.pieces} pieces "
                f"each (--accumulate): --train-batch-size must be a multiple of {parts}, and at least {2 * parts}"
            )
        return batch_size // parts


WHOLE = Share()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epoch:
    """One pass over the train part.

    Attributes:
        number: from 0.
        steps: how many batches there are.
        first: the first of them that is still to come.
        batches: in random order, each in the pieces of one process; the last, smaller one is left out.
    """

    number: int
    steps: int
    first: int
    batches: Iterator[tuple[Chunk, ...]]


def draw_epoch(
    samples: Samples, config: FrozenConfig | JointConfig, number: int,
    *, workers: int | None = None, share: Share = WHOLE, first: int = 0,
) -> Epoch:  # fmt: skip
    """Returns an epoch over the train part.

    Images are augmented before they are normalised; other samples come as they are. The same (seed, number) gives the
    same batches, so that a training which is continued sees what it would have seen.

    Args:
        samples: what is trained on.
        config: batch size, augmentation and seed.
        number: of the epoch, from 0.
        workers: as for ``load_chunks``.
        share: the rows of each batch that are loaded.
        first: the batch to begin with.

    Raises:
        UsageError: there are fewer samples to train on than one batch takes, or a batch cannot be divided.
    """
    order = np.random.default_rng([config.seed, number]).permutation(training_indices(samples, config))
    if len(order) < config.batch_size:
        raise UsageError(
            f"{samples.name} has {len(order)} samples to train on, fewer than one batch of {config.batch_size}; "
            "lower --train-batch-size"
        )
    if isinstance(samples, TextSamples):
        order = group_by_size(order, samples.texts.sizes(order), config.batch_size)
    size = share.size(config.batch_size)
    pieces = list(in_chunks(order[: len(order) - len(order) % config.batch_size], size))
    own = [piece for place, piece in enumerate(pieces) if place // share.pieces % share.count == share.rank]
    chunks = load_chunks(
        samples, own, workers=workers, augmentation=Augmentation.of(config, number, share.rank),
        first=first * share.pieces,
    )  # fmt: skip
    batches = zip(*[chunks] * share.pieces, strict=True)
    return Epoch(number=number, steps=len(own) // share.pieces, first=first, batches=batches)


def group_by_size(order: np.ndarray, sizes: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns an order in which batches hold texts of much the same size, so that little is filled up.

    Texts are sorted within stretches of ``_GROUPED`` batches, and the batches of a stretch stay where they are but for
    their own order, which is drawn from the order itself.

    Args:
        order: (n,) indices in random order.
        sizes: (n,) of each.
        batch_size: of a training step.
    """
    batches: list[np.ndarray] = []
    whole = len(order) - len(order) % batch_size
    for start in range(0, whole, _GROUPED * batch_size):
        stretch = np.arange(start, min(start + _GROUPED * batch_size, whole))
        ascending = stretch[np.argsort(sizes[stretch], kind="stable")]
        grouped = np.split(order[ascending], len(stretch) // batch_size)
        batches += [grouped[place] for place in np.random.default_rng(order[stretch]).permutation(len(grouped))]
    return np.concatenate([*batches, order[whole:]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How the images of one epoch are varied.

    Attributes:
        way: one of ``AUGMENTATIONS``.
        padding: pixels.
        seed: what is drawn for the n-th chunk depends on this and n.
    """

    way: str
    padding: int
    seed: tuple[int, ...]

    @classmethod
    def of(cls, config: FrozenConfig | JointConfig, epoch: int, rank: int = 0) -> Augmentation:
        """Returns the augmentation of an epoch in one of several processes."""
        seed = (config.seed, epoch, rank) if rank else (config.seed, epoch)
        return cls(way=config.augment, padding=config.crop_padding, seed=seed)

    def draw(self, number: int, count: int, size: tuple[int, int]) -> Moves:
        """Draws how the images of a chunk are moved: by up to ``padding`` pixels, and half of them mirrored.

        Args:
            number: of the chunk.
            count: how many images it has.
            size: height and width of an image.
        """
        random = np.random.default_rng([*self.seed, number])
        shifts = random.integers(0, 2 * self.padding + 1, (count, 2)) - self.padding
        mirrored = random.random((count,)) < (0.5 if self.way == "crop-mirror" else 0.0)
        return Moves(down=shifts[:, 0], right=shifts[:, 1], mirrored=mirrored, size=size)


def load_chunks(
    samples: Samples, chunks: Sequence[np.ndarray], *, workers: int | None = None,
    augmentation: Augmentation | None = None, first: int = 0,
) -> Iterator[Chunk]:  # fmt: skip
    """Yields samples chunk by chunk, in order, loaded by worker processes.

    Args:
        samples: what is loaded.
        chunks: indices.
        workers: processes; 0: this one. ``None``: one per allowed processor for image files, which have to be decoded,
            and none for samples that are arrays or a user's own, which may not survive a fork.
        augmentation: of images; ``None``: as they are.
        first: the chunk to begin with; it is augmented as if those before it had been loaded.

    Raises:
        PameError: a sample cannot be read; with its name.
    """
    if workers is None:
        workers = allowed_processors() if isinstance(samples, FileImages | DenseImages) else 0
    workers = min(workers, len(chunks) - first)
    reading = _Reading(samples, chunks, augmentation)
    if workers == 0:
        for number in range(first, len(chunks)):
            yield _prepare(samples, *reading.read(number))
        return
    forked = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        reading, batch_size=None, sampler=range(first, len(chunks)), num_workers=workers, collate_fn=_as_it_is,
        prefetch_factor=_AHEAD, multiprocessing_context=forked,
    )  # fmt: skip
    try:
        for found in loader:
            if isinstance(found, str):
                raise InputError(found)
            yield _prepare(samples, *found)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a worker process that decodes {samples.name} ended ({error}): where memory is short, use fewer of them "
            "with --workers, or 0"
        ) from error


def keep_pixels(samples: Samples, indices: np.ndarray, memory: int) -> Samples:
    """Returns samples whose images, where they have to be decoded, stay in memory as far as they fit.

    Args:
        samples: any.
        indices: those that every epoch needs.
        memory: bytes.
    """
    if not isinstance(samples, FileImages) or "fork" not in multiprocessing.get_all_start_methods():
        return samples
    return samples.keeping_pixels(indices, memory)


Read = tuple[np.ndarray | Mapping[str, np.ndarray], np.ndarray | None]


class _Reading(Dataset[Read | str]):
    """Chunks of samples by number: pixels of images (augmented), inputs of anything else, and targets."""

    def __init__(self, samples: Samples, chunks: Sequence[np.ndarray], augmentation: Augmentation | None) -> None:
        self._samples, self._chunks, self._augmentation = samples, chunks, augmentation

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> Read | str:
        """Returns a chunk, in a worker; what is wrong with a sample as text, since errors do not travel well."""
        try:
            return self.read(number)
        except PameError as error:
            return str(error)

    def read(self, number: int) -> Read:
        """Returns a chunk."""
        samples, chunk, how = self._samples, self._chunks[number], self._augmentation
        targets = samples.targets(chunk) if samples.labelled else None
        if not isinstance(samples, ImageSamples):
            return samples.inputs(chunk), targets
        pixels = samples.pixels(chunk)
        if how is not None and how.way != "none":
            wanted = samples.preprocessing
            moves = how.draw(number, len(chunk), (wanted.height, wanted.width))
            pixels = augment(pixels, moves, channels_last=wanted.layout == "NHWC")
            if isinstance(samples, DenseImages) and targets is not None:
                targets = samples.move_targets(targets, moves)
        return pixels, targets


def _as_it_is(read: Any) -> Any:
    """Keeps arrays arrays: tensors would travel through shared memory, of which containers have little."""
    return read


def _prepare(samples: Samples, read: np.ndarray | Mapping[str, np.ndarray], targets: np.ndarray | None) -> Chunk:
    if isinstance(read, np.ndarray):
        if not isinstance(samples, ImageSamples):
            raise TypeError("pixels of samples that are no images")
        return Chunk(inputs=samples.prepare(read), targets=targets)
    return Chunk(inputs=read, targets=targets)


def augment(images: np.ndarray, moves: Moves, *, channels_last: bool = False) -> np.ndarray:
    """Shifts and mirrors images; what comes in from outside is black.

    Args:
        images: uint8 (n, C, H, W), or (n, H, W, C) with ``channels_last``.
        moves: how.
        channels_last: where the axis of the channels is.

    Returns:
        A new array of the same shape.
    """
    if channels_last:
        return augment(images.transpose(0, 3, 1, 2), moves).transpose(0, 2, 3, 1)
    height, width = moves.size
    padding = int(max(np.abs(moves.down).max(initial=0), np.abs(moves.right).max(initial=0)))
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.empty_like(images)
    for row, (down, right) in enumerate(zip(moves.down.tolist(), moves.right.tolist(), strict=True)):
        top, left = down + padding, right + padding
        crop = padded[row, :, top : top + height, left : left + width]
        out[row] = crop[..., ::-1] if moves.mirrored[row] else crop
    return out
