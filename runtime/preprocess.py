"""Preprocessing for hosts: pictures become the batch that a bundle's network wants. Needs numpy, and Pillow for files.

The pixels are, bit by bit, those that calibration and the benchmark made of the same files: both go through
``artifacts.decode_image`` and ``Preprocessing.prepare``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from artifacts import BundleSpec, InputError, Preprocessing, UsageError, decode_image, render_array, render_image

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

ARRAY_ORDERS = ("RGB", "BGR")
_BYTES = (bytes, bytearray, memoryview)


def prepare_images(images: Picture | Iterable[Picture], spec: BundleSpec, *, array_order: str = "RGB") -> np.ndarray:
    """Returns the batch for ``Runtime.run``: one row per picture, in their order.

    Args:
        images: one picture or several, of any size and of several kinds: the path of a file, its bytes, an
            image of Pillow, or pixels as uint8 (H, W, C) or (H, W). An array (N, H, W, C) is N pictures. Files and
            images are turned upright as their camera noted, resized and cropped; pixels too, unless they have the
            network's size already.
        spec: of the bundle: ``Runtime.spec``.
        array_order: of the channels of arrays: ``RGB``, or ``BGR`` as OpenCV reads them.

    Returns:
        (N, C, H, W) or (N, H, W, C) in the type of the network's input: normalised floats, or bytes where the network
        normalises them itself.

    Raises:
        UsageError: the bundle does not say how its network wants images.
        InputError: a picture cannot be read, or is of another type; with its place in the sequence.
        MissingExtraError: Pillow is needed and not installed.
    """
    wanted = _wanted_by(spec)
    if array_order not in ARRAY_ORDERS:
        raise UsageError(f"array_order '{array_order}': expected one of {', '.join(ARRAY_ORDERS)}")
    pictures: list[object] = list(images) if _are_several(images) else [images]
    if not pictures:
        raise InputError("there are no images; pass at least one")
    pixels = np.empty((len(pictures), *wanted.row_shape), np.uint8)
    for place, picture in enumerate(pictures):
        pixels[place] = _read_picture(picture, wanted, place, array_order)
    return wanted.prepare(pixels, spec.inputs[0].dtype)


def _are_several(images: object) -> TypeGuard[Iterable[object]]:
    if isinstance(images, np.ndarray):
        return images.ndim > 3
    return isinstance(images, Iterable) and not isinstance(images, (str, os.PathLike, *_BYTES))


def _wanted_by(spec: BundleSpec) -> Preprocessing:
    if spec.preprocessing is None or len(spec.inputs) != 1:
        raise UsageError(
            f"bundle '{spec.name}' does not say how its network wants images. Export the network with --preprocess "
            "NAME|FILE and plan again, or prepare the batch yourself"
        )
    return spec.preprocessing


def _read_picture(picture: object, wanted: Preprocessing, place: int, order: str) -> np.ndarray:
    """Returns the pixels of one picture; a message names its place, and its path where it has one."""
    name = f"image {place}"
    if isinstance(picture, (str, os.PathLike)):
        return decode_image(Path(os.fspath(picture)), wanted, name=f"{name} ({os.fspath(picture)})")
    if isinstance(picture, _BYTES):
        return decode_image(bytes(picture), wanted, name=name)
    if isinstance(picture, np.ndarray):
        return render_array(picture, wanted, name=name, order=order)
    if _is_pillow(picture):
        return render_image(picture, wanted, name=name)  # type: ignore[arg-type]
    raise InputError(
        f"{name}: expected a path, the bytes of a file, an image of Pillow or an array of pixels, got "
        f"{type(picture).__name__}"
    )


def _is_pillow(picture: object) -> bool:
    """Tells whether an object is an image of Pillow, without loading Pillow."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(picture).__mro__)
