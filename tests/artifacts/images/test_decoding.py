"""Decoding: unusual files are read as they are meant, or named; resized and cropped as torchvision does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts import InputError, Preprocessing, check_image, decode_image
from artifacts.images.decoding import resize_image

GREY = Preprocessing(height=6, width=5, channel_order="L")
COLOUR = Preprocessing(height=6, width=5)
RAMP = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_greys_of_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert decode_image(saved(tmp_path / f"deep{suffix}", deep), GREY)[0].tolist() == RAMP.tolist()


def test_a_picture_is_turned_upright_as_its_camera_noted(tmp_path: Path) -> None:
    upright = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying = saved(tmp_path / "lying.png", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert decode_image(lying, GREY)[0].tolist() == RAMP.tolist()


def test_four_colours_of_print_become_three(tmp_path: Path) -> None:
    red = Image.new("RGB", (5, 6), (255, 0, 0)).convert("CMYK")
    found = decode_image(saved(tmp_path / "red.tif", red), COLOUR)
    assert found.shape == (3, 6, 5)
    assert found[:, 0, 0].tolist() == [255, 0, 0]


def test_channel_order_and_layout_follow_the_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (5, 6), (1, 2, 3)))
    assert decode_image(path, COLOUR)[:, 0, 0].tolist() == [1, 2, 3]
    other = Preprocessing(height=6, width=5, channel_order="BGR", layout="NHWC")
    assert decode_image(path, other).shape == (6, 5, 3)
    assert decode_image(path, other)[0, 0].tolist() == [3, 2, 1]


def test_of_a_phones_two_pictures_the_first_is_meant(tmp_path: Path) -> None:
    first, second = Image.new("L", (5, 6), 200), Image.new("L", (5, 6), 10)
    path = saved(tmp_path / "phone.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert abs(int(decode_image(path, GREY)[0, 0, 0]) - 200) < 3


def test_what_cannot_be_read_as_it_is_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    saved(tmp_path / "float.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    saved(tmp_path / "pages.tif", pages[0], save_all=True, append_images=pages[1:])
    for name, reason in {
        "text.png": "cannot be read as an image",
        "empty.jpg": "cannot be read as an image",
        "nowhere.png": "cannot be read as an image",
        "float.tif": "pixels of kind 'F'",
        "pages.tif": "holds 2 pictures",
    }.items():
        for read in (check_image, lambda path: decode_image(path, GREY)):
            with pytest.raises(InputError, match=rf"{name}.*{reason}"):
                read(tmp_path / name)
    whole = saved(tmp_path / "cut.png", Image.fromarray(np.tile(RAMP, (20, 20)))).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png cannot be read"):
        decode_image(tmp_path / "cut.png", GREY)


@given(width=st.integers(20, 90), height=st.integers(20, 90), side=st.integers(12, 30))
def test_the_centre_is_cut_from_where_torchvision_cuts_it(width: int, height: int, side: int) -> None:
    wanted = Preprocessing(
        height=12, width=10, resize="centre-crop", shorter_side=side, interpolation="bilinear", channel_order="L"
    )
    random = np.random.default_rng(width)
    image = Image.fromarray(random.integers(0, 256, (height, width), np.uint8))
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - 12) / 2.0), round((size[0] - 10) / 2.0)
    assert np.array_equal(np.asarray(resize_image(image, wanted)), resized[top : top + 12, left : left + 10])


def test_what_is_no_image_is_named_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"page\.jpg cannot be read as an image \(in none of the formats"):
        decode_image(tmp_path / "page.jpg", COLOUR)
    with pytest.raises(InputError, match=r"nothing\.png cannot be read as an image \(it is empty"):
        decode_image(b"", COLOUR, name="nothing.png")


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 6), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    path = saved(tmp_path / "clear.png", image, transparency=bytes(range(256)))
    assert decode_image(path, COLOUR)[:, 0, 0].tolist() == [10, 200, 30]
