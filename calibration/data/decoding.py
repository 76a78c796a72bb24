"""Decoding: an image file to the pixels of one row, resized and laid out as a network's preprocessing says."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import InputError, MissingExtraError, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names for 16-bit greys
_DEEP_FORMATS = ("PNG", "PPM")  # whose greys of mode "I" have 16 bits
_PAGED_FORMATS = ("GIF", "PNG", "TIFF", "WEBP")  # phones put a second picture behind the first of a JPEG (MPO)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", *_DEEP_MODES)


def decode_image(source: Path | bytes, wanted: Preprocessing, *, name: str | None = None) -> np.ndarray:
    """Reads an image file as the pixels of one row, before they are normalised.

    Pictures that a camera turned by a note in the file (EXIF) are turned upright; greys of 16 bits keep their whole
    range: 65535 becomes 255.

    Args:
        source: the file's path, or its bytes.
        wanted: its size, resize, channel order and layout count.
        name: of the picture, for messages; ``None``: the path.

    Returns:
        uint8 (C, H, W) or (H, W, C).

    Raises:
        InputError: the file is no image, or one of a kind whose range of values is not known.
    """
    where = _name(source, name)
    if wanted.channel_order == "any":
        raise InputError(
            f"{where}: the network takes {wanted.channels} channels, which an image file does not have; bring samples "
            "as an .npz of arrays, or as an object of your own with --data module:object"
        )
    modules = _load_pillow()
    with _opened(source, where) as image:
        upright = modules.ImageOps.exif_transpose(image)
        plain = _as_bytes(upright, modules).convert("L" if wanted.channels == 1 else "RGB")
        pixels = np.asarray(resize_image(plain, wanted))
    pixels = pixels.reshape(wanted.height, wanted.width, wanted.channels)
    if wanted.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    return pixels if wanted.layout == "NHWC" else pixels.transpose(2, 0, 1)


def _name(source: Path | bytes, name: str | None) -> str:
    return name or (str(source) if isinstance(source, Path) else f"an image of {len(source)} bytes")


def check_image(source: Path | bytes, *, name: str | None = None) -> None:
    """Reads the header of an image file, as ``decode_image`` does.

    Raises:
        InputError: the file is no image, or one that cannot be read as it is meant.
    """
    with _opened(source, _name(source, name)):
        pass


def resize_image(image: Image.Image, wanted: Preprocessing) -> Image.Image:
    """Resizes (antialiased) and crops as torchvision does: the shorter side first, then the centre."""
    resample = _load_pillow().Image.Resampling[wanted.interpolation.upper()]
    if wanted.shorter_side is None:
        return image.resize((wanted.width, wanted.height), resample)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(wanted.shorter_side * long / short)
    size = (wanted.shorter_side, longer) if width <= height else (longer, wanted.shorter_side)
    resized = image if size == image.size else image.resize(size, resample)
    left, top = round((size[0] - wanted.width) / 2), round((size[1] - wanted.height) / 2)
    return resized.crop((left, top, left + wanted.width, top + wanted.height))


@contextmanager
def _opened(source: Path | bytes, where: str) -> Iterator[Image.Image]:
    modules = _load_pillow()
    try:
        with modules.Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            if image.mode not in _MODES and not _is_deep(image):
                raise InputError(
                    f"{where}: pixels of kind '{image.mode}' have no range of values that is known; convert it to "
                    "8 or 16 bits"
                )
            if image.format in _PAGED_FORMATS and getattr(image, "n_frames", 1) > 1:
                raise InputError(
                    f"{where} holds {image.n_frames} pictures; save the one that is meant in a file of its own"
                )
            yield image
    except (modules.UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where} cannot be read as an image ({error}); remove or replace it") from error
    except modules.Image.DecompressionBombError as error:
        raise InputError(f"{where} is too large to be read safely ({error}); resize or remove it") from error


def _as_bytes(image: Image.Image, modules: Any) -> Image.Image:
    """Returns greys of 16 bits as greys of 8; other images as they are."""
    if not _is_deep(image):
        return image
    deep = np.asarray(image).astype(np.float32)
    shallow: Image.Image = modules.Image.fromarray(np.round(deep / 257).astype(np.uint8))
    return shallow


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _DEEP_MODES or (image.mode == "I" and image.format in (None, *_DEEP_FORMATS))


class _Pillow:
    """The parts of Pillow that are used here, loaded once."""

    def __init__(self) -> None:
        from PIL import Image, ImageOps, UnidentifiedImageError

        self.Image, self.ImageOps, self.UnidentifiedImageError = Image, ImageOps, UnidentifiedImageError


@functools.cache
def _load_pillow() -> Any:
    try:
        return _Pillow()
    except ImportError as error:
        raise MissingExtraError("Pillow", "train") from error
