"""Tests of the conventions: their numbers, how they are fitted to a network, and fields that are written down."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts import (
    CONVENTIONS,
    GraphError,
    InputError,
    Preprocessing,
    UsageError,
    find_convention,
    fit_fields,
    plain_preprocessing,
)


def fitted(name: str, *row: int) -> Preprocessing:
    return find_convention(name).fit(plain_preprocessing(row, name="x", dtype="float32"))


def test_imagenet_is_what_torchvision_does() -> None:
    assert fitted("imagenet", 3, 224, 224) == Preprocessing(
        height=224, width=224, resize="centre-crop", shorter_side=256, interpolation="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    assert fitted("imagenet", 299, 299, 3).shorter_side == 342
    assert fitted("imagenet", 299, 299, 3).layout == "NHWC"
    assert fitted("imagenet", 3, 32, 32).shorter_side == 32, "nothing is cut from pictures of 32 pixels"


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [("unit", 0.0, 1.0), ("raw", 0.0, 255.0), ("inception", -1.0, 1.0), ("caffe-bgr", -103.939, 255 - 103.939)],
)
def test_black_and_white_become_the_ends_of_the_range(name: str, black: float, white: float) -> None:
    pixels = np.stack([np.zeros((3, 8, 8)), np.full((3, 8, 8), 255)]).astype(np.uint8)
    found = fitted(name, 3, 8, 8).prepare(pixels, "float32")
    assert found[:, 0, 0, 0] == pytest.approx([black, white], abs=1e-5)


def test_numbers_for_three_colours_are_refused_elsewhere() -> None:
    for name in ("imagenet", "caffe-bgr"):
        with pytest.raises(UsageError, match=r"red, green and blue.*takes 1 channel.*inception, unit, raw"):
            fitted(name, 1, 28, 28)
    assert fitted("inception", 1, 28, 28).channel_order == "L"
    assert fitted("unit", 5, 28, 28).channel_order == "any"
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        find_convention("imagnet")


def test_inputs_of_integers_take_pixels_as_they_are() -> None:
    pixels = np.arange(0, 256, 5, dtype=np.uint8).reshape(1, 1, 4, 13)
    for dtype, less in (("uint8", 0), ("int32", 0), ("int8", 128)):
        plain = plain_preprocessing((1, 4, 13), name="x", dtype=dtype)
        plain.check_dtype(dtype)
        found = plain.prepare(pixels, dtype)
        assert found.dtype == dtype
        assert np.array_equal(found.astype(int), pixels.astype(int) - less)
        with pytest.raises(InputError, match=f"{dtype}, which cannot hold values from 0 to 1"):
            find_convention("unit").fit(plain).check_dtype(dtype)
    with pytest.raises(InputError, match="cannot hold values from 0 to 255"):
        find_convention("raw").fit(plain).check_dtype("int8")


def test_fields_complete_what_the_network_says() -> None:
    plain = plain_preprocessing((3, 8, 8), name="x", dtype="float32")
    found = fit_fields({"mean": [0.5, 0.4, 0.3], "std": [0.2]}, plain, where="p.json")
    assert found == Preprocessing(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2,))
    for fields, message in (
        ({"means": [0.5]}, r"unknown field of the preprocessing in p\.json 'means'\. Did you mean 'mean'"),
        ({"mean": "0.5"}, r"p\.json: .*mean"),
        ({"height": 16}, r"describes images of \(3, 16, 8\) \(NCHW\), and the network takes \(3, 8, 8\)"),
        ({"channel_order": "L"}, r"describes images of \(1, 8, 8\)"),
        ({"in_graph": True}, "--input uint8"),
    ):
        with pytest.raises(UsageError, match=message):
            fit_fields(fields, plain, where="p.json")


def test_an_input_that_is_no_image_is_refused() -> None:
    with pytest.raises(GraphError, match="is not an image"):
        plain_preprocessing((7,), name="x", dtype="float32")


def test_every_convention_is_described_in_words() -> None:
    said = {convention.name: fitted(convention.name, 3, 224, 224).describe() for convention in CONVENTIONS}
    assert said["imagenet"] == (
        "RGB, shorter side to 256, 224 x 224 from the centre (bilinear), pixels (p / 255 - mean) / spread with mean "
        "0.485 0.456 0.406 and spread 0.229 0.224 0.225, NCHW"
    )
    assert said["raw"] == "RGB, resized to 224 x 224 (bicubic), pixels p, NCHW"
    assert said["unit"] == "RGB, resized to 224 x 224 (bicubic), pixels p / 255, NCHW"
    assert said["caffe-bgr"].startswith("BGR, ")
