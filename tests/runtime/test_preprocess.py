"""Tests of preprocessing in a host: the pixels that calibration had, bit by bit, from anything that holds a picture."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from artifacts import CONVENTIONS, BundleSpec, InputError, Preprocessing, TensorSpec, UsageError
from calibration import FileImages, ImageSamples, image_input, load_samples
from runtime import prepare_images

ROOT = Path(__file__).parents[2]
RAMP = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)


def spec_of(preprocessing: Preprocessing | None, dtype: str = "float32") -> BundleSpec:
    row = (3, 8, 8) if preprocessing is None else preprocessing.row_shape
    x = TensorSpec(name="x", dtype=dtype, row_shape=row)
    return cast("BundleSpec", SimpleNamespace(name="mine", inputs=(x,), preprocessing=preprocessing))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of all sorts: turned by a camera, four colours of print, 16 bits, a palette, transparent, tall, wide."""
    root = tmp_path_factory.mktemp("pictures")
    picture = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "0.jpg", exif=exif, quality=90)
    picture.convert("CMYK").save(root / "1.tif")
    Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257).save(root / "2.png")
    picture.convert("P").save(root / "3.png")
    picture.convert("RGBA").save(root / "4.png")
    picture.resize((20, 90)).save(root / "5.bmp")
    picture.resize((16, 12)).save(root / "6.webp")
    return root


def wishes() -> list[Preprocessing]:
    plain = Preprocessing(height=12, width=16)
    every = [convention.fit(plain) for convention in CONVENTIONS]
    every += [replace(way, layout="NHWC") for way in every]
    grey = {"height": 12, "width": 16, "channel_order": "L"}
    return [
        *every,
        Preprocessing(**grey, resize="centre-crop", shorter_side=24, interpolation="lanczos"),
        Preprocessing(**grey, resize="squash-crop", shorter_side=20, interpolation="nearest", mean=(0.3,), std=(0.2,)),
        replace(every[0], in_graph=True),
    ]


@pytest.mark.parametrize("wanted", wishes(), ids=lambda wanted: wanted.describe())
def test_a_host_has_the_pixels_of_calibration_bit_by_bit(wanted: Preprocessing, folder: Path) -> None:
    dtype = "uint8" if wanted.in_graph else "float32"
    want = replace(image_input(wanted.row_shape, dtype=dtype), preprocessing=wanted, stated=True)
    samples = load_samples(folder, want)
    assert isinstance(samples, FileImages)
    assert isinstance(samples, ImageSamples)
    rows = np.arange(7)
    (expected,) = samples.inputs(rows).values()
    paths = [Path(samples.files.name(int(row))) for row in rows]
    opened = [Image.open(path) for path in paths]
    for pictures in (paths, [str(path) for path in paths], [path.read_bytes() for path in paths], opened, iter(paths)):
        found = prepare_images(pictures, spec_of(wanted, dtype))
        assert found.dtype == expected.dtype == dtype
        assert found.flags.c_contiguous
        assert found.tobytes() == expected.tobytes()
    assert np.array_equal(prepare_images(paths[3], spec_of(wanted, dtype)), expected[3:4])


def test_arrays_of_the_networks_size_are_what_an_npz_gives_and_others_are_pictures(tmp_path: Path) -> None:
    wanted = Preprocessing(
        height=12, width=16, resize="centre-crop", shorter_side=24, channel_order="BGR", mean=(0.1, 0.2, 0.3)
    )
    pixels = np.random.default_rng(1).integers(0, 256, (5, 12, 16, 3), np.uint8)
    np.savez(tmp_path / "pixels.npz", images=pixels)
    want = replace(image_input((3, 12, 16)), preprocessing=wanted, stated=True)
    (expected,) = load_samples(tmp_path / "pixels.npz", want).inputs(np.arange(5)).values()
    for given in (pixels, list(pixels)):
        assert prepare_images(given, spec_of(wanted)).tobytes() == expected.tobytes()
    turned = prepare_images(np.ascontiguousarray(pixels[..., ::-1]), spec_of(wanted), array_order="BGR")
    assert turned.tobytes() == expected.tobytes()
    assert np.array_equal(prepare_images(RAMP, spec_of(wanted)), prepare_images(Image.fromarray(RAMP), spec_of(wanted)))
    grey = Preprocessing(height=12, width=16, channel_order="L")
    found = prepare_images(RAMP[..., 0], spec_of(grey))
    assert np.array_equal(found, prepare_images(Image.fromarray(RAMP[..., 0]), spec_of(grey)))
    assert np.array_equal(found, prepare_images(RAMP[..., :1], spec_of(grey)))
    many = Preprocessing(height=12, width=16, channel_order="any", channel_count=5)
    assert prepare_images(np.zeros((2, 12, 16, 5), np.uint8), spec_of(many)).shape == (2, 5, 12, 16)


def test_half_precision_is_rounded_once() -> None:
    wanted = Preprocessing(height=37, width=51, mean=(0.4,), std=(0.3,))
    found = prepare_images(RAMP, spec_of(wanted, "float16"))
    assert found.dtype == np.float16
    assert np.array_equal(found, prepare_images(RAMP, spec_of(wanted)).astype(np.float16))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([RAMP, RAMP.astype(np.float32)], r"image 1: expected pixels as uint8 .* got float32 \(37, 51, 3\)"),
        (RAMP.transpose(2, 0, 1), r"image 0: .*got \(3, 37, 51\)\. Put the channels last"),
        ([RAMP, 7], "image 1: expected a path, .* got int"),
        (7, "image 0: expected a path, .* got int"),
        ([b"no picture"], "image 0 cannot be read as an image"),
        (["/nowhere.png"], r"image 0 \(/nowhere\.png\) cannot be read"),
        ([], "there are no images"),
        (Image.fromarray(RAMP[..., 0].astype(np.float32)), "image 0: pixels of kind 'F'"),
    ],
)
def test_what_is_no_picture_is_named_with_its_place(pictures: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_images(pictures, spec_of(Preprocessing(height=12, width=16)))  # type: ignore[arg-type]


def test_a_bundle_that_does_not_say_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bundle 'mine' does not say .* --preprocess"):
        prepare_images(RAMP, spec_of(None))
    with pytest.raises(UsageError, match="array_order 'GBR': expected one of RGB, BGR"):
        prepare_images(RAMP, spec_of(Preprocessing(height=12, width=16)), array_order="GBR")
    with pytest.raises(InputError, match=r"takes 5 channels, which an image file does not have"):
        many = Preprocessing(height=12, width=16, channel_order="any", channel_count=5)
        buffer = io.BytesIO()
        Image.fromarray(RAMP).save(buffer, "png")
        prepare_images(buffer.getvalue(), spec_of(many))


def test_pixels_of_the_networks_size_need_no_pillow_and_files_name_it() -> None:
    script = """
import sys
from types import SimpleNamespace as S
sys.modules["PIL"] = None
import numpy as np
from artifacts import MissingExtraError, Preprocessing
from runtime import prepare_images
spec = S(name="n", inputs=(S(dtype="float32"),), preprocessing=Preprocessing(height=4, width=5))
assert prepare_images(np.zeros((2, 4, 5, 3), np.uint8), spec).shape == (2, 3, 4, 5)
try:
    prepare_images(b"x", spec)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'pame[images]'" in done.stdout
