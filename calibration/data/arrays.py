"""ArrayImages: images as one array of bytes, in memory or mapped from an ``.npz`` file."""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts import CorruptArtifactError, InputError, load_arrays
from calibration.data.image_input import CHUNK_ROWS, ImageInput, image_input, measure_normalisation
from calibration.data.labels import name_numbers
from calibration.data.samples import in_chunks
from calibration.data.splits import Splitting, settle_parts, split_by_names
from calibration.data.stored import StoredImages

_log = logging.getLogger("pame.calibration")
_NO_WISHES = Splitting()
LOADED_BYTES = 256 << 20
_ALIGNED = 64  # bytes, for any dtype


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayImages(StoredImages):
    """Images in one array, with labels or without; an implementation of ``ImageSamples``.

    Attributes:
        images: uint8 in the network's size and layout: (N, C, H, W) or (N, H, W, C).
        mapping: the file's mapping that ``images`` reads from; its pages are given back after every read.
    """

    images: np.ndarray
    mapping: mmap.mmap | None = None

    def __post_init__(self) -> None:
        labels = np.zeros(len(self.images), np.int64) if self.labels is None else self.labels
        expected = self.input.row_shape
        if self.images.shape[1:] != expected or self.images.dtype != np.uint8 or len(self.images) != len(labels):
            raise InputError(
                f"{self.name}: expected uint8 images of shape (N, {', '.join(map(str, expected))}) and N labels, "
                f"got {self.images.dtype} {self.images.shape} and {len(labels)} labels"
            )
        if self.labelled and len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise InputError(f"{self.name}: labels must lie in 0..{len(self.classes) - 1}")
        StoredImages.__post_init__(self)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns uint8 images, a copy."""
        rows = np.ascontiguousarray(self.images[indices])
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)
        return rows

    def content_digest(self) -> str:
        """Returns the SHA-256 of dtype, shape and bytes, as ``artifacts.array_digest``."""
        digest = hashlib.sha256(f"{self.images.dtype.str} {self.images.shape} ".encode())
        for rows in self._chunks(np.arange(len(self))):
            digest.update(rows.reshape(-1).data)
        return digest.hexdigest()

    def with_own_normalisation(self) -> ArrayImages:
        """Returns the images normalised by their own mean and spread."""
        chunks = self._chunks(self.measured_indices())
        return replace(self, input=self.input.normalised_by(*measure_normalisation(chunks)))

    def _chunks(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return (self.pixels(chunk) for chunk in in_chunks(indices, CHUNK_ROWS))


def make_samples(
    name: str, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...],
    parts: Mapping[str, np.ndarray], *, split_seed: int | None = None,
) -> ArrayImages:  # fmt: skip
    """Builds samples from arrays (N, C, H, W) or (N, H, W, C), normalised by their own mean and spread."""
    return ArrayImages(
        name=name, images=images, labels=labels, classes=classes, parts=parts, input=image_input(images.shape[1:]),
        split_seed=split_seed,
    ).with_own_normalisation()  # fmt: skip


def load_npz(
    source: Path, want: ImageInput, *, splitting: Splitting = _NO_WISHES, report: Callable[[str], None] = _log.info
) -> ArrayImages:
    """Loads ``images`` and, where given, ``labels`` and ``split`` from an ``.npz``.

    It is mapped and read a batch at a time; a large compressed one is unpacked first (``map_arrays``).

    Args:
        source: the file; ``images`` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), ``labels`` (N,) integers from 0,
            ``split`` (N,) names of parts.
        want: the network's input; the images must have its size.
        splitting: decides about the parts that ``split`` does not name.
        report: receives notes for the user.

    Raises:
        InputError: other arrays, types or shapes.
    """
    arrays, mapping = map_arrays(source, report=report)
    if "images" not in arrays:
        raise InputError(
            f"{source}: expected arrays 'images' and, where known, 'labels' and 'split', found {sorted(arrays)}. Save "
            "them under these names: np.savez(file, images=..., labels=..., split=...)"
        )
    unknown = sorted(set(arrays) - {"images", "labels", "split"})
    if len(arrays["images"]) == 0:
        raise InputError(f"{source}: 'images' holds none; expected uint8 images of shape (N, ...)")
    if "labels" in arrays and unknown:
        report(f"{source}: the arrays {', '.join(unknown)} are not read; 'split' names the part of each image")
    if "labels" not in arrays and unknown:
        raise InputError(
            f"{source}: there is no array 'labels', and {unknown} are unknown; name the labels 'labels', or leave "
            "'images' (and 'split') alone for queries without labels"
        )
    images, labels = arrange_images(source, arrays["images"], want), arrays.get("labels")
    classes: tuple[str, ...] = ()
    if labels is not None:
        labels = check_labels(source, np.array(labels), count=len(images))
        classes = name_numbers(source, labels)
    count, named = len(images), None
    if "split" in arrays:
        named = split_by_names(source.name, arrays["split"].astype(np.str_), count=count)
    parts, split_seed = settle_parts(source.name, named, labels, count=count, splitting=splitting, report=report)
    return ArrayImages(
        name=source.name, images=images, labels=labels, classes=classes, parts=parts, input=want,
        split_seed=split_seed, mapping=mapping,
    )  # fmt: skip


def arrange_images(source: Path, images: np.ndarray, want: ImageInput) -> np.ndarray:
    """Returns a view of RGB or grey images (N, ...) uint8 in the network's layout and order of channels.

    Raises:
        InputError: they have another size than the network takes.
    """
    expected = want.row_shape
    last = want.preprocessing.layout == "NHWC"
    if images.ndim == 3:
        images = images[..., None] if last else images[:, None]
    elif images.ndim == 4 and images.shape[1:] != expected:
        turned = images.transpose(0, 2, 3, 1) if last else images.transpose(0, 3, 1, 2)
        images = turned if turned.shape[1:] == expected else images
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        fix = "" if images.dtype == np.uint8 else ". Save the pixels as they are in files, 0 to 255, as np.uint8"
        raise InputError(
            f"{source}: the network takes uint8 images of shape (N, {', '.join(map(str, expected))}); "
            f"got {images.dtype} {images.shape}{fix}"
        )
    if want.preprocessing.channel_order == "BGR":
        images = images[..., ::-1] if last else images[:, ::-1]
    return images


def check_labels(source: Path, labels: np.ndarray, *, count: int) -> np.ndarray:
    """Returns labels (count,) as int64; what cannot be labels is refused. Whole numbers of any type are labels."""
    if labels.shape != (count,):
        columns = labels.shape[1] if labels.ndim == 2 and len(labels) == count else 0
        fix = {0: "", 1: ". Save labels[:, 0]"}.get(columns, ". Save one number each, labels.argmax(1) of 0 and 1")
        raise InputError(f"{source}: expected labels of shape ({count},) for {count} images, got {labels.shape}{fix}")
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        least = f", the least of them {labels.min()}" if np.issubdtype(labels.dtype, np.integer) else ""
        words = ". Save their places among the network's classes: np.searchsorted(sorted_classes, labels)"
        fix = words if labels.dtype.kind in "US" else ""
        raise InputError(f"{source}: labels must be integers from 0, got {labels.dtype}{least}{fix}")
    return labels.astype(np.int64)


def map_arrays(
    path: Path, *, report: Callable[[str], None] = _log.info
) -> tuple[dict[str, np.ndarray], mmap.mmap | None]:
    """Opens an ``.npz`` without pickle.

    Arrays that are stored uncompressed are views of the file. A compressed file is loaded whole while it has no more
    than ``LOADED_BYTES``; a larger one is unpacked once into a temporary file without a name, of which the arrays are
    views and which ends with this process.

    Args:
        path: the file.
        report: receives a note where something is unpacked.

    Returns:
        The arrays by name, and the mapping that they are views of; ``None`` where all were loaded.

    Raises:
        CorruptArtifactError: the file is not an ``.npz`` or holds pickled objects.
        InputError: there is no space to unpack it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not entries:
                return {}, None
            if all(entry.compress_type == zipfile.ZIP_STORED for entry in entries):
                with path.open("rb") as stream:
                    mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                starts = [_find_content(mapping, entry.header_offset) for entry in entries]
            elif sum(entry.file_size for entry in entries) <= LOADED_BYTES:
                return load_arrays(path), None
            else:
                mapping, starts = _unpack(path, archive, report)
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        found = {name: _view(mapping, start) for name, start in zip(names, starts, strict=True)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptArtifactError(f"{path} cannot be read as .npz without pickle: {error}") from error
    return found, mapping


def _unpack(path: Path, archive: zipfile.ZipFile, report: Callable[[str], None]) -> tuple[mmap.mmap, list[int]]:
    """Returns the mapped contents of an archive's members, and where each begins."""
    size = sum(entry.file_size for entry in archive.infolist())
    folder = tempfile.gettempdir()
    report(
        f"{path} is compressed: unpacking {size / 1e9:.1f} GB into {folder} (TMPDIR names another place); a file of "
        "np.savez is read as it is"
    )
    starts = []
    try:
        with tempfile.TemporaryFile(dir=folder) as target:
            for entry in archive.infolist():
                target.seek(-(-target.tell() // _ALIGNED) * _ALIGNED)
                starts.append(target.tell())
                with archive.open(entry) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            return mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ), starts
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{path} is compressed, and {folder} has no space for its {size / 1e9:.1f} GB ({error.strerror}): name "
            "another place with TMPDIR, or write the file with np.savez instead of np.savez_compressed"
        ) from error


_HEADER_READERS: Mapping[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _find_content(mapping: mmap.mmap, header_offset: int) -> int:
    """Returns where the content of an uncompressed member of a zip file begins."""
    name_length, extra_length = struct.unpack("<HH", mapping[header_offset + 26 : header_offset + 30])
    return int(header_offset + 30 + name_length + extra_length)


def _view(mapping: mmap.mmap, start: int) -> np.ndarray:
    """Returns the array of an ``.npy`` file inside the mapping: a view."""
    mapping.seek(start)
    version = np.lib.format.read_magic(mapping)
    if version not in _HEADER_READERS:
        raise ValueError(f"array format {version} is unknown")
    shape, fortran, dtype = _HEADER_READERS[version](mapping)
    if dtype.hasobject:
        raise ValueError("an array holds pickled objects")
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(mapping, dtype, count, mapping.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
