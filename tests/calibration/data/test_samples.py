"""Samples: read a batch at a time, prepared as ever, with memory that does not grow with the number of images."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts import CorruptArtifactError, GraphError, InputError, Preprocessing, RunFolder, array_digest
from calibration.data import arrays, files
from calibration.data.arrays import ArrayImages, load_npz
from calibration.data.files import FileImages
from calibration.data.image_input import image_input, measure_normalisation
from calibration.data.loading import load_samples
from calibration.data.samples import ImageSamples, Samples, as_batch
from calibration.data.sources import load_run_data
from calibration.data.splits import choose_shares
from tests.calibration.tracing.label_maps import Scenes, write_run

SHAPE = (1, 6, 5)
WANTED = image_input(SHAPE)
ROOT = Path(__file__).parents[3]


def write_images(root: Path, count: int = 20) -> np.ndarray:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *SHAPE), np.uint8)
    for number, image in enumerate(images):
        (root / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(root / f"{number % 2}" / f"{number:04}.png")
    return np.concatenate([images[0::2], images[1::2]])


@given(mean=st.integers(0, 10_000), std=st.integers(10, 10_000))
def test_rows_are_those_of_the_first_release_bit_by_bit(mean: int, std: int) -> None:
    """It knew one mean and one spread of four digits, and this formula."""
    mean_, std_ = mean / 1e4, std / 1e4
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    before = pixels.astype(np.float32) * np.float32(1 / (255 * std_)) - np.float32(mean_ / std_)
    now = image_input((1, 16, 16)).normalised_by(mean_, std_).prepare(pixels)
    assert now.dtype == np.float32
    assert now.tobytes() == before.tobytes()


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=60))
def test_mean_and_spread_are_those_of_all_pixels_together(values: list[int]) -> None:
    pixels = np.array(values, np.uint8)
    together = pixels.astype(np.float32) / 255
    mean, spread = measure_normalisation(np.array_split(pixels, 3))
    assert mean == pytest.approx(together.mean(dtype=np.float64), abs=6e-5)
    assert spread == pytest.approx(max(together.std(dtype=np.float64), 1e-3), abs=6e-5)


def test_files_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "x")
    decoded: list[str] = []
    decode = files.decode_image

    def counted(content: bytes, wanted: Preprocessing, *, name: str, box: object = None) -> np.ndarray:
        decoded.append(Path(name).name)
        assert box is None
        return decode(content, wanted, name=name)

    monkeypatch.setattr(files, "decode_image", counted)
    stated = replace(WANTED, stated=True)
    samples = load_samples(tmp_path / "x", stated)
    assert decoded == []
    assert np.array_equal(samples.pixels(np.array([3, 0])), images[[3, 0]])
    assert decoded == ["0006.png", "0000.png"]
    own = load_samples(tmp_path / "x", WANTED)
    train = images[own.indices_of("train")]
    assert own.preprocessing.mean[0] == pytest.approx(train.mean() / 255, abs=1e-4)


def test_files_and_arrays_are_samples_and_agree(tmp_path: Path) -> None:
    images = write_images(tmp_path / "x")
    np.savez(tmp_path / "x.npz", images=images, labels=np.repeat([0, 1], 10))
    one, other = load_samples(tmp_path / "x", WANTED), load_samples(tmp_path / "x.npz", WANTED)
    assert isinstance(one, FileImages)
    assert isinstance(other, ArrayImages)
    for samples in (one, other):
        assert isinstance(samples, Samples)
        assert isinstance(samples, ImageSamples)
    assert not isinstance("x.npz", Samples)
    rows = np.array([4, 9, 0])
    assert as_batch(one.inputs(rows)).tobytes() == as_batch(other.inputs(rows)).tobytes()
    kept = {name: digest for name, digest in one.digests().items() if name != "images"}
    assert kept == {name: digest for name, digest in other.digests().items() if name != "images"}


def test_the_digest_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "x")
    before = load_samples(tmp_path / "x", WANTED).digests()
    (tmp_path / "x").rename(tmp_path / "y")
    assert load_samples(tmp_path / "y", WANTED).digests() == before
    Image.new("L", (5, 6), 3).save(tmp_path / "y" / "0" / "0004.png")
    assert load_samples(tmp_path / "y", WANTED).digests()["images"] != before["images"]
    (tmp_path / "y" / "1" / "0001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0001\.png cannot be read as an image"):
        load_samples(tmp_path / "y", replace(WANTED, stated=True)).digests()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_mapped_unless_it_is_compressed(tmp_path: Path, save: object) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 6, 5), np.uint8)
    save(tmp_path / "x.npz", images=images, labels=np.arange(300) % 3)
    samples = load_npz(tmp_path / "x.npz", WANTED)
    assert (samples.mapping is not None) is (save is np.savez)
    assert np.array_equal(samples.pixels(np.arange(300))[:, 0], images)
    assert samples.digests()["images"] == array_digest(images[:, None])


@pytest.mark.parametrize(("row_shape", "layout"), [((3, 6, 5), "NCHW"), ((6, 5, 3), "NHWC"), ((6, 5, 1), "NHWC")])
def test_images_come_in_the_layout_of_the_network(tmp_path: Path, row_shape: tuple[int, ...], layout: str) -> None:
    wanted = image_input(row_shape)
    assert wanted.preprocessing.layout == layout
    write_images(tmp_path / "x", 4)
    assert load_samples(tmp_path / "x", wanted).inputs(np.arange(2))["images"].shape == (2, *row_shape)
    channels = wanted.preprocessing.channels
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 6, 5), np.uint8)
    for name, array in {"first": images, "last": images.transpose(0, 2, 3, 1)}.items():
        np.savez(tmp_path / f"{name}.npz", images=array, labels=np.zeros(4, int))
        found = load_samples(tmp_path / f"{name}.npz", wanted).pixels(np.arange(4))
        assert np.array_equal(found, images if layout == "NCHW" else images.transpose(0, 2, 3, 1))


def test_bytes_go_into_a_network_of_bytes_as_they_are(tmp_path: Path) -> None:
    images = write_images(tmp_path / "x")
    wanted = image_input(SHAPE, dtype="uint8")
    assert np.array_equal(load_samples(tmp_path / "x", wanted).inputs(np.arange(20))["images"], images)


@pytest.mark.parametrize("shape", [(10,), (6, 5)])
def test_what_is_no_image_wants_samples_of_its_own(shape: tuple[int, ...]) -> None:
    with pytest.raises(GraphError, match="--data module:object"):
        image_input(shape)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"gain": None}, "'pixels' float32 .* the network takes 'gain' float32"),
        ({"gain": np.float64}, "'gain' float64"),
        ({"mask": np.float32}, "'mask' float32"),
    ],
)
def test_samples_that_do_not_fit_the_network_are_refused(
    tmp_path: Path, changed: dict[str, type | None], message: str | None
) -> None:
    run = RunFolder(root=tmp_path / "scenes")
    write_run(run)

    class Other(Scenes):
        def inputs(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
            found = dict(super().inputs(indices))
            for name, dtype in changed.items():
                found[name] = np.zeros((len(indices), 1), dtype or np.float32)
            return {name: array for name, array in found.items() if changed.get(name, array) is not None}

    if message is None:
        assert load_run_data(run, Other()).name == "scenes"
    else:
        with pytest.raises(InputError, match=f"scenes does not fit scenes.*{message}"):
            load_run_data(run, Other())


@pytest.mark.slow
@pytest.mark.parametrize(("form", "few"), [("folder", 500), ("npz", 4_000)])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, form: str, few: int) -> None:
    """Peak memory over all inputs and digests, of few images and of ten times as many."""
    content = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    peaks = []
    for count in (few, 10 * few):
        source = tmp_path / f"{count}"
        if form == "folder":
            (source / "a").mkdir(parents=True)
            Image.fromarray(content).save(tmp_path / "one.png")
            for number in range(count):
                (source / "a" / f"image_{number:06}.png").hardlink_to(tmp_path / "one.png")
        else:
            source = source.with_suffix(".npz")
            np.savez(source, images=np.broadcast_to(content, (count, 64, 64)), labels=np.zeros(count, int))
        done = subprocess.run(
            [sys.executable, "-c", _WALK, str(source)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0], peaks


_WALK = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS, in_chunks
samples = load_samples(Path(sys.argv[1]), image_input((1, 64, 64)))
samples.digests()
for part in PARTS:
    for chunk in in_chunks(samples.indices_of(part), 64):
        samples.inputs(chunk)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_compressed_npz_is_unpacked_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 6, 5)).astype(np.uint8)
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.arange(300) % 3, split=np.array(["test"] * 300))
    monkeypatch.setattr(arrays, "LOADED_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    samples = load_npz(tmp_path / "x.npz", WANTED, report=said.append)
    assert samples.mapping is not None
    np.testing.assert_array_equal(samples.pixels(np.array([299, 3]))[:, 0], images[[299, 3]])
    assert samples.targets(np.array([299, 3])).tolist() == [2, 0]
    assert "TMPDIR" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(InputError, match=r"x\.npz is compressed, and .* has no space.*np\.savez instead"):
        load_npz(tmp_path / "x.npz", WANTED)


@pytest.mark.parametrize("loaded", [0, 1 << 20])
def test_a_damaged_compressed_npz_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: int) -> None:
    images = np.random.default_rng(0).integers(0, 99, (300, 6, 5)).astype(np.uint8)
    np.savez_compressed(tmp_path / "x.npz", images=images)
    monkeypatch.setattr(arrays, "LOADED_BYTES", loaded)
    whole = (tmp_path / "x.npz").read_bytes()
    for position in range(60, 3000, 150):
        raw = bytearray(whole)
        raw[position] ^= 255
        (tmp_path / "x.npz").write_bytes(raw)
        with pytest.raises(CorruptArtifactError, match="cannot be read as .npz"):
            load_npz(tmp_path / "x.npz", WANTED)


@pytest.mark.parametrize(
    ("count", "calibrate"), [(1, 0.4), (900, 0.4), (12_500, 0.4), (20_000, 0.25), (25_000, 0.2), (1_000_000, 0.2)]
)
def test_drawn_parts_leave_enough_to_calibrate_on(count: int, calibrate: float) -> None:
    shares = choose_shares(count)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["calibrate"] == pytest.approx(calibrate)
    assert shares["test"] == 0.2
    assert shares["train"] >= 0.4 - 1e-12


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.zeros((4, 6, 5), np.uint8), "y_train": np.zeros(4, int)}, "np.savez.file, images=..., labels="),
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.eye(4)}, r"labels.argmax\(1\)"),
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.zeros((4, 1), int)}, r"labels\[:, 0\]"),
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.array(list("abca"))}, "np.searchsorted"),
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.array([0, 1, np.nan, 1])}, "got float64"),
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.array([0, 1, 0.5, 1])}, "got float64"),
        ({"images": np.zeros((4, 6, 5), np.float32), "labels": np.zeros(4, int)}, "0 to 255, as np.uint8"),
    ],
)
def test_npz_as_others_write_it_is_refused_with_the_fix(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        load_samples(tmp_path / "x.npz", image_input((1, 6, 5)))


def test_whole_numbers_are_labels_whatever_their_type(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 1], np.float32)
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 6, 5), np.uint8), labels=labels)
    found = load_samples(tmp_path / "x.npz", image_input((1, 6, 5)))
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 2, 1]
