"""Labelled images in three disjoint parts: train | calibrate | test.

A ``Dataset`` holds raw uint8 images and the index set of each part; the digests of the images and of the index sets
go into every artifact made from them, so that anybody can check that no part was used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import InputError, MissingExtraError, array_digest, load_arrays, unknown_name

SPLITS = ("train", "calibrate", "test")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels.

    Attributes:
        name: for messages and records.
        images: (N, C, H, W) uint8.
        labels: (N,) int64, positions in ``classes``.
        classes: class names.
        splits: part -> ascending indices into ``images``, int64; pairwise disjoint.
        mean, std: normalisation of pixel values in [0, 1], one number each, from the train part.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray]
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or len(self.images) != len(self.labels):
            raise InputError(
                f"{self.name}: expected uint8 images of shape (N, C, H, W) and N labels, "
                f"got {self.images.dtype} {self.images.shape} and {len(self.labels)} labels"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise InputError(f"{self.name}: labels must lie in 0..{len(self.classes) - 1}")
        together = np.concatenate([self.splits[part] for part in SPLITS])
        if len(np.unique(together)) != len(together):
            raise InputError(f"{self.name}: the parts {', '.join(SPLITS)} overlap; every image belongs to one of them")

    def inputs(self, indices: np.ndarray) -> np.ndarray:
        """Returns the network's input for some images: (n, C, H, W) float32, normalised."""
        return normalise(self.images[indices], mean=self.mean, std=self.std)

    def digests(self) -> dict[str, str]:
        """Returns the digests of the images, the labels and the index set of each part."""
        parts = {f"indices.{part}": array_digest(self.splits[part]) for part in SPLITS}
        return {"images": array_digest(self.images), "labels": array_digest(self.labels), **parts}

    def split(self, part: str) -> np.ndarray:
        """Returns the indices of a part."""
        if part not in self.splits:
            raise unknown_name("part of the data", part, SPLITS)
        return self.splits[part]


def normalise(images: np.ndarray, *, mean: float, std: float) -> np.ndarray:
    """Scales uint8 pixels to [0, 1] and normalises them; float32 of the same shape."""
    scale, shift = np.float32(1 / (255 * std)), np.float32(mean / std)
    return images.astype(np.float32) * scale - shift


def split_indices(labels: np.ndarray, shares: Mapping[str, float], *, seed: int) -> dict[str, np.ndarray]:
    """Splits 0..N-1 at random, each class in the same proportions.

    Args:
        labels: (N,) integers.
        shares: part -> share of the samples; the shares sum to 1.
        seed: decides the draw.
    """
    random = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {part: [] for part in shares}
    bounds = np.cumsum(list(shares.values()))[:-1]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(shares, np.split(members, np.round(bounds * len(members)).astype(int)), strict=True):
            parts[part].append(piece)
    return {part: np.sort(np.concatenate(pieces)) for part, pieces in parts.items()}


def make_dataset(
    name: str, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], splits: Mapping[str, np.ndarray]
) -> Dataset:
    """Builds a ``Dataset`` and takes its normalisation from the train part, or from all when that is empty."""
    train = splits["train"] if len(splits["train"]) else np.arange(len(images))
    pixels = images[train].astype(np.float32) / 255
    mean, std = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    return Dataset(
        name=name,
        images=images,
        labels=labels,
        classes=classes,
        splits=splits,
        mean=round(mean, 4),
        std=max(round(std, 4), 1e-3),
    )


def load_dataset(source: Path, *, shape: tuple[int, int, int], seed: int = 0) -> Dataset:
    """Loads one's own images: a folder with one sub-folder per class, or an ``.npz``.

    A folder may hold ``train/``, ``calibrate/`` and ``test/`` above the classes; otherwise every class is split
    60 / 20 / 20. An ``.npz`` holds ``images`` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), ``labels`` (N,) integers
    and, optionally, ``split`` (N,) strings.

    Args:
        source: the folder or file.
        shape: (C, H, W) that the network takes; image files are resized to it, arrays must have it.
        seed: decides the split where none is given.

    Raises:
        InputError: nothing there, or not in one of these forms.
    """
    if source.is_dir():
        return _load_folder(source, shape, seed)
    if source.suffix == ".npz" and source.is_file():
        return _load_npz(source, shape, seed)
    raise InputError(f"--data {source}: expected a folder with one sub-folder per class, or an .npz file")


_SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}


def _load_npz(source: Path, shape: tuple[int, int, int], seed: int) -> Dataset:
    arrays = load_arrays(source)
    if not {"images", "labels"} <= set(arrays):
        raise InputError(f"{source}: expected arrays 'images' and 'labels', found {sorted(arrays)}")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] != shape and images.shape[3] == shape[0]:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.shape[1:] != shape or labels.shape != (len(images),):
        raise InputError(
            f"{source}: the network takes uint8 images of shape (N, {', '.join(map(str, shape))}) and (N,) labels; "
            f"got {images.dtype} {images.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise InputError(f"{source}: labels must be integers from 0, got {labels.dtype}")
    labels = labels.astype(np.int64)
    if "split" in arrays:
        splits = {part: np.flatnonzero(arrays["split"].astype(str) == part) for part in SPLITS}
    else:
        splits = split_indices(labels, _SHARES, seed=seed)
    classes = tuple(map(str, range(int(labels.max(initial=0)) + 1)))
    return make_dataset(source.name, np.ascontiguousarray(images), labels, classes, splits)


def _load_folder(source: Path, shape: tuple[int, int, int], seed: int) -> Dataset:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("Pillow", "train") from error
    roots = {part: source / part for part in SPLITS if (source / part).is_dir()}
    if roots and len(roots) < len(SPLITS):
        raise InputError(f"{source} holds {', '.join(roots)} but not all of {', '.join(SPLITS)}")
    files = [
        (part, path)
        for part, root in (roots or {"": source}).items()
        for path in sorted(root.glob("*/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise InputError(f"{source} holds no images: expected {source}/<class>/<image>.png")
    classes = tuple(sorted({path.parent.name for _, path in files}))
    images = np.empty((len(files), *shape), np.uint8)
    for row, (_, path) in enumerate(files):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1])))
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        images[row] = pixels.reshape(shape[1], shape[2], -1).transpose(2, 0, 1)
    labels = np.array([classes.index(path.parent.name) for _, path in files], np.int64)
    if roots:
        parts = np.array([part for part, _ in files])
        splits = {part: np.flatnonzero(parts == part) for part in SPLITS}
    else:
        splits = split_indices(labels, _SHARES, seed=seed)
    return make_dataset(source.name, images, labels, classes, splits)
