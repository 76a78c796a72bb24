"""Folders of images and masks, in the layouts of the field.

``images/<part>/x.jpg`` with ``masks/<part>/x.png`` (or both without parts); ``train/x.png`` with ``trainannot/x.png``
(SegNet's CamVid); ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation/<part>.txt`` (Pascal VOC);
``leftImg8bit/<part>/<city>`` with ``gtFine/<part>/<city>/x_gtFine_labelTrainIds.png`` (Cityscapes).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from artifacts import IMAGE_SUFFIXES, InputError
from calibration.data.splits import PART_NAMES

_LAYOUTS = (
    "images/ and masks/ (with or without parts in them), train/ and trainannot/, JPEGImages/ and SegmentationClass/, "
    "or leftImg8bit/ and gtFine/"
)
_MASK = ".png"
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundMasks:
    """Pairs of images and masks, in a fixed order.

    Attributes:
        images, masks: (N,) bytes: paths relative to the folder.
        parts: (N,) names of our parts; ``None`` where the folder has none.
        notes: for the user.
    """

    images: np.ndarray
    masks: np.ndarray
    parts: np.ndarray | None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pairs:
    """What was found so far: (image, mask, part or ``""``), and images without a mask."""

    found: list[tuple[str, str, str]] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)

    def add(self, source: Path, image: str, mask: str, part: str) -> None:
        if (source / mask).is_file():
            self.found.append((image, mask, part))
        else:
            self.bare.append(image)


def find_masks(source: Path) -> FoundMasks:
    """Lists the images of a folder with their masks.

    Raises:
        InputError: the folder is of no known layout, has no images, or images without masks.
    """
    pairs = _Pairs()
    if (source / "leftImg8bit").is_dir() and (source / "gtFine").is_dir():
        _find_cityscapes(source, pairs)
    elif (source / "JPEGImages").is_dir() and (source / "SegmentationClass").is_dir():
        _find_voc(source, pairs)
    elif (source / "images").is_dir() and (source / "masks").is_dir():
        _find_pairs(source, {"images": "masks"}, pairs)
    elif beside := {name: f"{name}annot" for name in _folders(source) if (source / f"{name}annot").is_dir()}:
        _find_pairs(source, beside, pairs)
    else:
        raise InputError(f"--data {source}: a segmentation network needs images and masks: {_LAYOUTS}")
    return _finish(source, pairs)


def _finish(source: Path, pairs: _Pairs) -> FoundMasks:
    if pairs.bare:
        raise InputError(
            f"{source}: {len(pairs.bare)} images have no mask, {', '.join(pairs.bare[:_SHOWN])} for instance: add "
            "those, or move the images away"
        )
    if not pairs.found:
        raise InputError(f"{source} holds no images: expected {_LAYOUTS}")
    named = [part for _, _, part in pairs.found]
    if any(named) and not all(named):
        stray = next(image for image, _, part in pairs.found if not part)
        raise InputError(f"{source} has parts, and beside them {stray}: move that into a part or away")
    parts = np.array(named, np.str_) if all(named) else None
    counts = "" if parts is None else f": {', '.join(f'{named.count(part)} {part}' for part in dict.fromkeys(named))}"
    return FoundMasks(
        images=np.array([os.fsencode(image) for image, _, _ in pairs.found], np.bytes_),
        masks=np.array([os.fsencode(mask) for _, mask, _ in pairs.found], np.bytes_),
        parts=parts,
        notes=(f"{len(named)} images with masks in {source}{counts}",),
    )


def _folders(source: Path) -> list[str]:
    if not source.is_dir():
        raise InputError(f"--data {source}: there is no such folder")
    return sorted(entry.name for entry in source.iterdir() if entry.is_dir())


def _list_images(source: Path, folder: str) -> list[str]:
    """Returns the images below a folder, relative to the source, in a fixed order."""
    found = (path for path in (source / folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path.relative_to(source).as_posix() for path in found if not path.name.startswith("."))


def _find_pairs(source: Path, folders: Mapping[str, str], pairs: _Pairs) -> None:
    """Finds the mask of ``<folder>/a/x.jpg`` at ``<other folder>/a/x.png``."""
    for folder, other in folders.items():
        for image in _list_images(source, folder):
            inner = image.removeprefix(f"{folder}/")
            part = PART_NAMES.get(folder.lower()) or PART_NAMES.get(inner.partition("/")[0].lower(), "")
            pairs.add(source, image, f"{other}/{Path(inner).with_suffix(_MASK).as_posix()}", part)


def _find_voc(source: Path, pairs: _Pairs) -> None:
    lists = sorted((source / "ImageSets" / "Segmentation").glob("*.txt"))
    named = {path: PART_NAMES[path.stem.lower()] for path in lists if path.stem.lower() in PART_NAMES}
    if not named:
        raise InputError(f"{source}: expected ImageSets/Segmentation/train.txt, val.txt or test.txt")
    for path, part in named.items():
        for stem in path.read_text(encoding="utf-8").split():
            pairs.add(source, f"JPEGImages/{stem}.jpg", f"SegmentationClass/{stem}{_MASK}", part)


def _find_cityscapes(source: Path, pairs: _Pairs) -> None:
    ending = "_leftImg8bit"
    for image in _list_images(source, "leftImg8bit"):
        inner = Path(image.removeprefix("leftImg8bit/"))
        part = PART_NAMES.get(inner.parts[0].lower(), "")
        stem = inner.stem.removesuffix(ending)
        pairs.add(source, image, f"gtFine/{inner.with_name(f'{stem}_gtFine_labelTrainIds{_MASK}').as_posix()}", part)
