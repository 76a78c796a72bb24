"""Metadata: the notes inside an ``.onnx`` file that say how its network wants its images.

Ultralytics, OpenVINO's Model API (Geti) and the image metadata of ONNX itself (``Image.*``, written by the
converters of CoreML and Custom Vision) each have keys of their own; some exporters write a plain mean and spread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from artifacts import InputError, Preprocessing
from export.pixels.neighbours import read_numbers

Metadata = Mapping[str, str]
_RANGES = {"NominalRange_0_255": (1.0, 0.0, 1.0), "Normalized_0_1": (1 / 255, 0.0, 1.0),
           "Normalized_1_1": (1 / 255, 0.5, 0.5)}  # fmt: skip
_ORDERS = {"Rgb8": "RGB", "Rgba8": "RGB", "Bgr8": "BGR", "Bgra8": "BGR", "Gray8": "L"}
_LARGEST_SHARE = 2.0  # a mean beyond that is not of pixels in [0, 1]


def relevant_metadata(metadata: Metadata) -> dict[str, str]:
    """Returns what of a file's metadata says how images are prepared; nothing where none does."""
    return dict(metadata) if _reader_of(metadata) is not None else {}


def read_metadata_pixels(metadata: Metadata, network: Preprocessing) -> Preprocessing:
    """Returns what the metadata says.

    Args:
        metadata: of the file, as ``relevant_metadata`` returned it.
        network: the plain preprocessing of the network's input, which decides size, channels and layout.

    Raises:
        InputError: it says something that ``Preprocessing`` has no words for, or the values make no sense.
    """
    reader = _reader_of(metadata)
    if reader is None:
        raise InputError("it says nothing about images")
    return reader(metadata, network)


def _reader_of(metadata: Metadata) -> Callable[[Metadata, Preprocessing], Preprocessing] | None:
    if {"imgsz", "names", "task"} <= set(metadata):
        return _read_ultralytics
    if "model_info mean_values" in metadata:
        return _read_model_api
    if "Image.NominalPixelRange" in metadata:
        return _read_image_metadata
    if any({mean, std} <= set(metadata) for mean, std in _PLAIN):
        return _read_plain
    return None


def _read_ultralytics(metadata: Metadata, network: Preprocessing) -> Preprocessing:
    if metadata["task"] != "classify":
        raise InputError(f"Ultralytics prepares images for the task '{metadata['task']}' in a way of its own")
    side = max(network.height, network.width)
    return replace(network, scale=1 / 255, resize="centre-crop", shorter_side=side, interpolation="bilinear")


def _read_model_api(metadata: Metadata, network: Preprocessing) -> Preprocessing:
    kind = metadata.get("model_info resize_type", "standard")
    if kind != "standard":
        raise InputError(f"resize_type '{kind}' has no counterpart here")
    flipped = metadata.get("model_info reverse_input_channels", "False").lower() in ("true", "yes", "1")
    return replace(
        network, scale=1.0, mean=_numbers(metadata, "model_info mean_values"), interpolation="bilinear",
        std=_numbers(metadata, "model_info scale_values", missing=1.0), channel_order=_order(network, bgr=not flipped),
    )  # fmt: skip


def _read_image_metadata(metadata: Metadata, network: Preprocessing) -> Preprocessing:
    nominal, order = metadata["Image.NominalPixelRange"], metadata.get("Image.BitmapPixelFormat", "Rgb8")
    if nominal not in _RANGES or order not in _ORDERS:
        raise InputError(f"Image.NominalPixelRange '{nominal}' of '{order}' has no counterpart here")
    scale, mean, std = _RANGES[nominal]
    return replace(
        network, scale=scale, mean=(mean,), std=(std,), interpolation="bilinear",
        channel_order=_order(network, bgr=_ORDERS[order] == "BGR"),
    )  # fmt: skip


_PLAIN = (("mean", "std"), ("image_mean", "image_std"))


def _read_plain(metadata: Metadata, network: Preprocessing) -> Preprocessing:
    names = next(names for names in _PLAIN if set(names) <= set(metadata))
    mean, std = (_numbers(metadata, name) for name in names)
    scale = 1.0 if max(map(abs, (*mean, *std))) > _LARGEST_SHARE else 1 / 255
    return replace(network, scale=scale, mean=mean, std=std)


def _order(network: Preprocessing, *, bgr: bool) -> str:
    if network.channels != 3:
        return network.channel_order
    return "BGR" if bgr else "RGB"


def _numbers(metadata: Metadata, name: str, *, missing: float | None = None) -> tuple[float, ...]:
    """Returns the numbers in a text, whatever stands between them."""
    text = metadata.get(name, "" if missing is None else str(missing))
    try:
        values = [float(word) for word in re.split(r"[\s,;\[\]()]+", text) if word]
    except ValueError as error:
        raise InputError(f"{name} '{text}': {error}") from error
    return read_numbers({name: values}, name) if values else read_numbers({}, name)
