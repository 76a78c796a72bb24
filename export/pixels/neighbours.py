"""Neighbours: files beside an ``.onnx`` that say how its network wants its images.

Hugging Face writes ``preprocessor_config.json``, timm ``config.json``. Both describe steps that they run with Pillow as
we do, so that what can be said in ``Preprocessing`` is the same to the pixel; what cannot is refused with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import InputError, Preprocessing

HUGGING_FACE = "preprocessor_config.json"
TIMM = "config.json"
_TIMM_CONFIG = "pretrained_cfg"
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_SQUASHING = ("ViT", "DeiT", "Deit", "Beit", "BEiT", "EfficientNet", "Swin")  # whose size of one number is a square
_UNLIKE = ("do_pad", "do_thumbnail", "do_align_long_axis")
_LARGE = 384  # ConvNeXt squashes from this size on


def neighbour_folders(path: Path) -> tuple[Path, ...]:
    """Returns the folders whose files may be about an ``.onnx``: its own, and the one above a folder ``onnx``."""
    folder = path.absolute().parent
    return (folder, folder.parent) if folder.name == "onnx" else (folder,)


def is_hugging_face(plain: Mapping[str, Any]) -> bool:
    """Tells whether JSON is what Hugging Face writes of an image processor."""
    return any(name in plain for name in ("image_mean", "do_normalize", "do_rescale", "image_processor_type"))


def is_timm(plain: Mapping[str, Any]) -> bool:
    """Tells whether JSON is what timm writes of a network."""
    return isinstance(plain.get(_TIMM_CONFIG), dict) or {"mean", "std", "input_size"} <= set(plain)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(plain).__name__}")
    return plain


def read_hugging_face(plain: Mapping[str, Any], network: Preprocessing) -> Preprocessing:
    """Returns what an image processor of Hugging Face's transformers does.

    Args:
        plain: of its ``preprocessor_config.json``.
        network: the plain preprocessing of the network's input, which decides size, channels and layout.

    Raises:
        InputError: it does something that ``Preprocessing`` has no words for, or the values make no sense.
    """
    kind = str(plain.get("image_processor_type") or plain.get("feature_extractor_type") or "")
    unlike = [name for name in _UNLIKE if plain.get(name)]
    if kind.startswith("Levit") or unlike:
        raise InputError(f"{', '.join(unlike) or kind} has no counterpart here")
    scale = float(plain.get("rescale_factor", 1 / 255)) if plain.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if plain.get("do_normalize", True):
        mean, std = read_numbers(plain, "image_mean"), read_numbers(plain, "image_std")
    if plain.get("rescale_offset"):
        mean = tuple(value + 1 for value in mean)
    if kind.startswith("EfficientNet") and plain.get("include_top"):
        std = tuple(value * value for value in std)  # it normalises by the spread a second time
    resample = plain.get("resample", 2)
    if resample not in _RESAMPLING:
        raise InputError(f"resample {resample} has no counterpart here")
    numbers = replace(
        network, scale=scale, mean=mean, std=std, interpolation=_RESAMPLING[resample],
        channel_order="BGR" if plain.get("do_flip_channel_order") and network.channels == 3 else network.channel_order,
    )  # fmt: skip
    return _resize_as_hugging_face(plain, kind, numbers)


def _resize_as_hugging_face(plain: Mapping[str, Any], kind: str, numbers: Preprocessing) -> Preprocessing:
    side = max(numbers.height, numbers.width)
    cropped = bool(plain.get("do_center_crop", plain.get("crop_pct") is not None))
    if not plain.get("do_resize", True):
        return replace(numbers, resize="squash", shorter_side=None)
    size = plain.get("size")
    edge, square = _edge_of(size, squared=kind.startswith(_SQUASHING) or not cropped)
    pct = plain.get("crop_pct", 0.875 if kind.startswith("ConvNext") else None)
    if pct is not None:
        if kind.startswith("ConvNext") and side >= _LARGE:
            return replace(numbers, resize="squash", shorter_side=None)
        return replace(numbers, resize="centre-crop", shorter_side=int(side / float(pct)))
    if edge is None:
        raise InputError(f"size {size!r} has no counterpart here")
    if cropped:
        crop = _edge_of(plain.get("crop_size", size), squared=True)[0] or edge
        shorter = edge if crop == side else round(edge * side / crop)
        return replace(numbers, resize="squash-crop" if square else "centre-crop", shorter_side=max(side, shorter))
    if square:
        return replace(numbers, resize="squash", shorter_side=None)
    return replace(numbers, resize="centre-crop", shorter_side=side)


def _edge_of(size: Any, *, squared: bool) -> tuple[int | None, bool]:
    """Returns the length of an edge in pixels, and whether both edges are given that length."""
    if isinstance(size, int):
        return size, squared
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int):
        return size["shortest_edge"], False
    if isinstance(size, dict) and isinstance(size.get("height"), int) and size.get("height") == size.get("width"):
        return size["height"], True
    return None, squared


def read_timm(plain: Mapping[str, Any], network: Preprocessing) -> Preprocessing:
    """Returns how timm prepares images for one of its networks in evaluation; arguments and errors as above."""
    config = plain.get(_TIMM_CONFIG, plain)
    side, mode = max(network.height, network.width), config.get("crop_mode") or "center"
    interpolation = config.get("interpolation") or "bilinear"
    if network.height != network.width or mode not in ("center", "squash"):
        raise InputError(f"crop_mode {mode} for {network.height} x {network.width} has no counterpart here")
    pct = config.get("crop_pct") or 0.875
    if config.get("test_crop_pct") and list(config.get("test_input_size") or ())[1:] == [side, side]:
        pct = config["test_crop_pct"]
    return replace(
        network, scale=1 / 255, mean=read_numbers(config, "mean"), std=read_numbers(config, "std"),
        interpolation="bilinear" if interpolation == "random" else str(interpolation),
        resize="centre-crop" if mode == "center" else "squash-crop", shorter_side=math.floor(side / float(pct)),
    )  # fmt: skip


def read_numbers(plain: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Returns the numbers per channel of a key; one where all are equal.

    Raises:
        InputError: they are not there, or no numbers.
    """
    values = plain.get(name)
    values = [values] if isinstance(values, (int, float)) else values
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, (int, float)) for value in values):
        raise InputError(f"{name} {values!r}: expected numbers, one per channel")
    found = tuple(float(value) for value in values)
    return found[:1] if len(set(found)) == 1 else found
