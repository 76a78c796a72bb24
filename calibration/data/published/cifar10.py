"""CIFAR-10 as its authors publish it in binary: 60,000 colour images of 32x32 in 10 classes (Krizhevsky 2009).

A record of a ``.bin`` file is one byte, the class, and 3,072 bytes, the red, green and blue planes. The five files
``data_batch_N.bin`` are the train part, ``test_batch.bin`` is the test part. The archive "for Python" holds pickles,
which may run code when they are read: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from artifacts import InputError
from calibration.data.arrays import ArrayImages, arrange_images
from calibration.data.image_input import ImageInput
from calibration.data.samples import PARTS
from calibration.data.splits import Splitting, settle_parts

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN, _TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes
_CLASS_NAMES = "batches.meta.txt"


def find_cifar10(source: Path) -> tuple[Path, ...]:
    """Returns the files of CIFAR-10 in a folder, those of the train part first; none where it is another folder.

    Raises:
        InputError: it holds the archive for Python, or only some of the binary files.
    """
    names = (*_TRAIN, _TEST)
    files = tuple(source / f"{name}.bin" for name in names)
    there = [file for file in files if file.is_file()]
    if not there:
        if all((source / name).is_file() for name in names):
            raise InputError(
                f"{source} is CIFAR-10 for Python: pickled files, which may run code when they are read, so they are "
                "not. Take the binary version, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, and name its "
                "folder cifar-10-batches-bin"
            )
        return ()
    if missing := [file.name for file in files if file not in there]:
        raise InputError(f"{source} is CIFAR-10 in binary, but lacks {', '.join(missing)}; unpack the archive again")
    return files


def load_cifar10(
    source: Path, files: tuple[Path, ...], want: ImageInput, *, splitting: Splitting, report: Callable[[str], None]
) -> ArrayImages:
    """Loads the binary files; 180 MB of memory for all of them.

    Args:
        source: their folder.
        files: as ``find_cifar10`` returned them.
        want: the network's input; it must take images of 32x32 in colour.
        splitting: decides about the calibrate part, which CIFAR-10 has none of.
        report: receives notes for the user.

    Raises:
        InputError: a file is damaged, or the network takes other images.
    """
    records = [_read_records(file) for file in files]
    labels = np.concatenate([record[:, 0] for record in records]).astype(np.int64)
    images = np.concatenate([record[:, 1:].reshape(-1, *_SHAPE) for record in records])
    train = sum(len(record) for record in records[:-1])
    named = {part: np.zeros(0, np.int64) for part in PARTS}
    named |= {"train": np.arange(train), "test": np.arange(train, len(images))}
    parts, seed = settle_parts(
        source.name, named, labels, count=len(images), splitting=splitting, report=report
    )  # fmt: skip
    return ArrayImages(
        name=source.name, images=arrange_images(source, images, want), labels=labels, classes=_read_classes(source),
        parts=parts, input=want, split_seed=seed,
    )  # fmt: skip


def _read_records(file: Path) -> np.ndarray:
    """Returns the records of a file: (n, 3073) uint8."""
    raw = np.fromfile(file, np.uint8)
    if len(raw) == 0 or len(raw) % _RECORD:
        raise InputError(
            f"{file} has {len(raw)} bytes, which is no whole number of records of {_RECORD}; unpack the archive again"
        )
    records = raw.reshape(-1, _RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise InputError(f"{file} names class {records[:, 0].max()}, and CIFAR-10 has {len(CLASSES)}: another data set")
    return records


def _read_classes(source: Path) -> tuple[str, ...]:
    listed = source / _CLASS_NAMES
    names = tuple(listed.read_text(encoding="utf-8").split()) if listed.is_file() else CLASSES
    if len(names) != len(CLASSES):
        raise InputError(f"{listed} names {len(names)} classes; CIFAR-10 has {len(CLASSES)}")
    return names
