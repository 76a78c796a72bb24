"""Decoding: a picture in a file, in bytes or in memory to the pixels of one row, as a network wants them.

Calibration, the benchmark and a host's own process all come through here, so that they have the same pixels bit by bit.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.errors import InputError, MissingExtraError
from artifacts.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names for 16-bit greys
_ORIENTATION, _ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for pictures that lie on a side
_DEEP_FORMATS = ("PNG", "PPM")  # whose greys of mode "I" have 16 bits
_PAGED_FORMATS = ("GIF", "PNG", "TIFF", "WEBP")  # phones put a second picture behind the first of a JPEG (MPO)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", *_DEEP_MODES)


Box = tuple[int, int, int, int]
"""Left, top, right, bottom of a part of a picture, in pixels; what lies beyond the picture is black."""


def decode_image(
    source: Path | bytes, wanted: Preprocessing, *, name: str | None = None, box: Box | None = None
) -> np.ndarray:
    """Reads an image file as the pixels of one row, before they are normalised.

    Pictures that a camera turned by a note in the file (EXIF) are turned upright; greys of 16 bits keep their whole
    range: 65535 becomes 255.

    Args:
        source: the file's path, or its bytes.
        wanted: its size, resize, channel order and layout count.
        name: of the picture, for messages; ``None``: the path.
        box: the part of the picture that is meant; ``None``: all of it.

    Returns:
        uint8 (C, H, W) or (H, W, C).

    Raises:
        InputError: the file is no image, or one of a kind whose range of values is not known.
    """
    where = _name(source, name)
    _check_pictures(wanted, where)
    with _opened(source, where) as image:
        return _render(image, wanted, box=box)


def decode_mask(source: Path | bytes, wanted: Preprocessing, *, name: str | None = None) -> np.ndarray:
    """Reads a mask, the class of every pixel, with the geometry that its image has as a row.

    Args:
        source: the file's path, or its bytes; a value of a byte, or the number of a palette's colour, is the class.
        wanted: its size and resize count; classes are never mixed, so each pixel is taken from the nearest.
        name: of the mask, for messages; ``None``: the path.

    Returns:
        uint8 (H, W).

    Raises:
        InputError: the file is no image, or holds colours.
    """
    where = _name(source, name)
    with _opened(source, where) as image:
        if image.mode not in ("L", "P", "1"):
            raise InputError(
                f"{where} is no mask: its pixels are of kind '{image.mode}'; expected a PNG of one byte per pixel, "
                "whose value (or place in the palette) is the class"
            )
        plain = image if image.mode != "1" else image.convert("L").point(lambda value: value // 255)
        resized = resize_image(plain, replace(wanted, interpolation="nearest"))
        return np.array(resized, np.uint8)


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Returns width and height of an image, a file or its bytes, by its header; ``InputError`` where it is none."""
    with _opened(source, _name(source, None)) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) in _ON_THEIR_SIDE else (width, height)


def locate_points(points: np.ndarray, size: tuple[int, int], wanted: Preprocessing) -> np.ndarray:
    """Returns where points of a picture come to lie in a row.

    Args:
        points: (n, 2) x and y in pixels of the picture.
        size: width and height of the picture, or of the box that was cut from it.
        wanted: its size and resize count.

    Returns:
        (n, 2) x and y as shares of the row's width and height; outside of 0 to 1 for what is cut off.
    """
    row = np.array([wanted.width, wanted.height], np.float64)
    if wanted.shorter_side is None:
        return np.asarray(points, np.float64) / np.array(size, np.float64)
    resized = np.array(_resized(size, wanted.shorter_side, squashed=wanted.resize == "squash-crop"), np.float64)
    corner = np.round((resized - row) / 2)
    found: np.ndarray = (points * resized / np.array(size, np.float64) - corner) / row
    return found


def render_image(image: Image.Image, wanted: Preprocessing, *, name: str) -> np.ndarray:
    """Returns the pixels of one row for a picture that Pillow has opened; otherwise as ``decode_image``."""
    _check_pictures(wanted, name)
    with _named(name):
        _check_kind(image, name)
        return _render(image, wanted)


def render_array(pixels: np.ndarray, wanted: Preprocessing, *, name: str, order: str = "RGB") -> np.ndarray:
    """Returns the pixels of one row for an array of pixels.

    One that has the network's size already is taken as it is, any other is resized and cropped like a picture.

    Args:
        pixels: uint8 (H, W) or (H, W, C).
        wanted: as for ``decode_image``.
        name: of the picture, for messages.
        order: ``RGB`` or ``BGR``: that of the array's channels.

    Raises:
        InputError: another dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise InputError(
            f"{name}: expected pixels as uint8 (H, W) or (H, W, C), got {pixels.dtype} {pixels.shape}. Pass values "
            "from 0 to 255, height first, channels last"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels, allowed = pixels.shape[2], (wanted.channels,) if wanted.channel_order == "any" else (1, 3, 4)
    if channels not in allowed:
        raise InputError(
            f"{name}: expected (H, W, C) with C of {' or '.join(map(str, allowed))}, got {pixels.shape}. Put the "
            "channels last: array.transpose(1, 2, 0)"
        )
    if order == "BGR" and channels >= 3:
        pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=2)
    there = pixels.shape[:2] == (wanted.height, wanted.width)
    if there and channels == wanted.channels:
        return _lay_out(pixels, wanted)
    _check_pictures(wanted, name)
    image = _load_pillow().Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
    return _render(image, wanted, resized=there)


def _name(source: Path | bytes, name: str | None) -> str:
    return name or (str(source) if isinstance(source, Path) else f"an image of {len(source)} bytes")


def check_image(source: Path | bytes, *, name: str | None = None) -> None:
    """Reads the header of an image file; arguments as for ``decode_image``.

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
    size = _resized(image.size, wanted.shorter_side, squashed=wanted.resize == "squash-crop")
    resized = image if size == image.size else image.resize(size, resample)
    left, top = round((size[0] - wanted.width) / 2), round((size[1] - wanted.height) / 2)
    return resized.crop((left, top, left + wanted.width, top + wanted.height))


def _resized(size: tuple[int, int], shorter: int, *, squashed: bool) -> tuple[int, int]:
    if squashed:
        return shorter, shorter
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def _render(image: Image.Image, wanted: Preprocessing, *, resized: bool = False, box: Box | None = None) -> np.ndarray:
    upright = _load_pillow().ImageOps.exif_transpose(image)
    if box is not None:
        upright = upright.crop(box)
    plain = _as_bytes(upright).convert("L" if wanted.channels == 1 else "RGB")
    return _lay_out(np.asarray(plain if resized else resize_image(plain, wanted)), wanted)


def _lay_out(pixels: np.ndarray, wanted: Preprocessing) -> np.ndarray:
    """Brings (H, W, C) into the network's channel order and layout."""
    pixels = pixels.reshape(wanted.height, wanted.width, wanted.channels)
    if wanted.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    return pixels if wanted.layout == "NHWC" else pixels.transpose(2, 0, 1)


def _check_pictures(wanted: Preprocessing, name: str) -> None:
    if wanted.channel_order == "any":
        raise InputError(
            f"{name}: the network takes {wanted.channels} channels, which an image file does not have; bring samples "
            "as an .npz of arrays, or as an object of your own with --data module:object"
        )


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    if isinstance(source, bytes) and not source:
        raise InputError(f"{name} cannot be read as an image (it is empty, 0 bytes); remove or replace it")
    with _named(name), _load_pillow().Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
        _check_kind(image, name)
        yield image


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns what Pillow complains of into an error with the picture's name."""
    modules = _load_pillow()
    try:
        yield
    except modules.UnidentifiedImageError as error:
        raise InputError(
            f"{name} cannot be read as an image (in none of the formats that Pillow reads); remove or replace it"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} cannot be read as an image ({error}); remove or replace it") from error
    except modules.Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large to be read safely ({error}); resize or remove it") from error


def _check_kind(image: Image.Image, name: str) -> None:
    if image.mode not in _MODES and not _is_deep(image):
        raise InputError(
            f"{name}: pixels of kind '{image.mode}' have no range of values that is known; convert the file to "
            "8 or 16 bits"
        )
    count = getattr(image, "n_frames", 1)
    if image.format in _PAGED_FORMATS and count > 1:
        raise InputError(f"{name} holds {count} pictures; save the one that is meant in a file of its own")


def _as_bytes(image: Image.Image) -> Image.Image:
    """Returns greys of 16 bits as greys of 8, and palettes without their transparency; other images as they are."""
    if not _is_deep(image):
        return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    deep = np.asarray(image).astype(np.float32)
    shallow: Image.Image = _load_pillow().Image.fromarray(np.round(deep / 257).astype(np.uint8))
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
        raise MissingExtraError("Pillow", "images") from error
