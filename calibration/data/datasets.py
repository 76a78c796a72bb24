"""Images in three disjoint parts: train | calibrate | test; with labels, or a log of queries without.

A ``Dataset`` holds raw uint8 images and the index set of each part; the digests of the images and of the index sets
go into every artifact made from them, so that anybody can check that no part was used twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import InputError, MissingExtraError, UsageError, array_digest, load_arrays, unknown_name

SPLITS = ("train", "calibrate", "test")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Images, with labels or without.

    Attributes:
        name: for messages and records.
        images: (N, C, H, W) uint8.
        labels: (N,) int64, positions in ``classes``; ``None`` where they are not known.
        classes: class names; none without labels.
        splits: part -> ascending indices into ``images``, int64; pairwise disjoint.
        mean, std: normalisation of pixel values in [0, 1], one number each: the network's own where that is known,
            otherwise from the train part.
        split_seed: what decided about the parts; ``None`` where the data came with them.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray]
    mean: float
    std: float
    split_seed: int | None = None

    def __post_init__(self) -> None:
        labels = np.zeros(len(self.images), np.int64) if self.labels is None else self.labels
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or len(self.images) != len(labels):
            raise InputError(
                f"{self.name}: expected uint8 images of shape (N, C, H, W) and N labels, "
                f"got {self.images.dtype} {self.images.shape} and {len(labels)} labels"
            )
        if self.labelled and len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise InputError(f"{self.name}: labels must lie in 0..{len(self.classes) - 1}")
        together = np.concatenate([self.splits[part] for part in SPLITS])
        if len(np.unique(together)) != len(together):
            raise InputError(f"{self.name}: the parts {', '.join(SPLITS)} overlap; every image belongs to one of them")

    @property
    def labelled(self) -> bool:
        """Whether the true answers are known."""
        return self.labels is not None

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels (n,) int64 of some images.

        Raises:
            UsageError: there are none.
        """
        if self.labels is None:
            raise UsageError(
                f"{self.name} has no labels, and this cannot be done without; name labelled data with --data: a folder "
                "with one sub-folder per class, or an .npz with images and labels"
            )
        found: np.ndarray = self.labels[indices]
        return found

    def inputs(self, indices: np.ndarray) -> np.ndarray:
        """Returns the network's input for some images: (n, C, H, W) float32, normalised."""
        return normalise(self.images[indices], mean=self.mean, std=self.std)

    def digests(self) -> dict[str, str]:
        """Returns the digests of the images, the labels (if there are any) and the index set of each part."""
        parts = {f"indices.{part}": array_digest(self.splits[part]) for part in SPLITS}
        labels = {} if self.labels is None else {"labels": array_digest(self.labels)}
        return {"images": array_digest(self.images), **labels, **parts}

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
    name: str, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...],
    splits: Mapping[str, np.ndarray], *, split_seed: int | None = None,
) -> Dataset:  # fmt: skip
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
        split_seed=split_seed,
    )


def load_dataset(source: Path, *, shape: tuple[int, int, int], seed: int = 0) -> Dataset:
    """Loads one's own images: a folder with one sub-folder per class, or an ``.npz``; or either without labels.

    A folder may hold ``train/``, ``calibrate/`` and ``test/`` above the classes; otherwise every class is split
    60 / 20 / 20. An ``.npz`` holds ``images`` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), ``labels`` (N,) integers
    and, optionally, ``split`` (N,) strings.

    A log of queries has no labels: an ``.npz`` without that array, or a folder with the images themselves in it.
    Nothing is trained with it, so it is split at random into 80 to calibrate and 20 to test.

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
    raise InputError(
        f"--data {source}: expected a folder with one sub-folder per class, or an .npz file with images and labels; "
        "for queries without labels a folder of images, or an .npz file with images alone"
    )


_SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}
_QUERY_SHARES = {"train": 0.0, "calibrate": 0.8, "test": 0.2}


def _assemble(
    source: Path, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...],
    parts: np.ndarray | None, seed: int,
) -> Dataset:  # fmt: skip
    """Builds the data set, split by the names in ``parts`` (N,) or at random."""
    if parts is not None:
        splits = {part: np.flatnonzero(parts == part) for part in SPLITS}
        return make_dataset(source.name, images, labels, classes, splits)
    alike = np.zeros(len(images), np.int64) if labels is None else labels
    splits = split_indices(alike, _QUERY_SHARES if labels is None else _SHARES, seed=seed)
    return make_dataset(source.name, images, labels, classes, splits, split_seed=seed)


def _load_npz(source: Path, shape: tuple[int, int, int], seed: int) -> Dataset:
    arrays = load_arrays(source)
    if "images" not in arrays:
        raise InputError(f"{source}: expected arrays 'images' and, where known, 'labels', found {sorted(arrays)}")
    unknown = sorted(set(arrays) - {"images", "split"})
    if "labels" not in arrays and unknown:
        raise InputError(
            f"{source}: there is no array 'labels', and {unknown} are unknown; name the labels 'labels', or leave "
            "'images' (and 'split') alone for queries without labels"
        )
    images, labels = arrays["images"], arrays.get("labels")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] != shape and images.shape[3] == shape[0]:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise InputError(
            f"{source}: the network takes uint8 images of shape (N, {', '.join(map(str, shape))}); "
            f"got {images.dtype} {images.shape}"
        )
    classes: tuple[str, ...] = ()
    if labels is not None:
        labels = _check_labels(source, labels, count=len(images))
        classes = tuple(map(str, range(int(labels.max(initial=0)) + 1)))
    parts = arrays["split"].astype(str) if "split" in arrays else None
    return _assemble(source, np.ascontiguousarray(images), labels, classes, parts, seed)


def _check_labels(source: Path, labels: np.ndarray, *, count: int) -> np.ndarray:
    """Returns labels (count,) as int64; what cannot be labels is refused."""
    if labels.shape != (count,):
        raise InputError(f"{source}: expected labels of shape ({count},) for {count} images, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise InputError(f"{source}: labels must be integers from 0, got {labels.dtype}")
    return labels.astype(np.int64)


def _load_folder(source: Path, shape: tuple[int, int, int], seed: int) -> Dataset:
    roots = {part: source / part for part in SPLITS if (source / part).is_dir()}
    if roots and len(roots) < len(SPLITS):
        raise InputError(f"{source} holds {', '.join(roots)} but not all of {', '.join(SPLITS)}")
    labelled, files = _find_images(source, roots or {"": source})
    images = _read_images([path for _, path in files], shape)
    parts = np.array([part for part, _ in files]) if roots else None
    if not labelled:
        return _assemble(source, images, None, (), parts, seed)
    classes = tuple(sorted({path.parent.name for _, path in files}))
    labels = np.array([classes.index(path.parent.name) for _, path in files], np.int64)
    return _assemble(source, images, labels, classes, parts, seed)


def _find_images(source: Path, roots: Mapping[str, Path]) -> tuple[bool, list[tuple[str, Path]]]:
    """Returns whether the images lie in class folders, and each with its part."""
    flat, classed = (
        [
            (part, path)
            for part, root in roots.items()
            for path in sorted(root.glob(pattern))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        for pattern in ("*", "*/*")
    )
    if flat and classed:
        raise InputError(
            f"{source} holds images in class folders and images beside them ({flat[0][1]}, for instance): move those "
            "into a class folder or away; a log of queries without labels is a folder of images alone"
        )
    if not flat and not classed:
        raise InputError(
            f"{source} holds no images: expected {source}/<class>/<image>.png, or {source}/<image>.png for queries "
            "without labels"
        )
    return bool(classed), classed or flat


def _read_images(paths: Sequence[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Reads image files and resizes them to (C, H, W): (N, C, H, W) uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("Pillow", "train") from error
    images = np.empty((len(paths), *shape), np.uint8)
    for row, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1])))
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        images[row] = pixels.reshape(shape[1], shape[2], -1).transpose(2, 0, 1)
    return images
