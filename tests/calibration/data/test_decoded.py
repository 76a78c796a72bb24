"""Decoded images: kept as far as there is memory, by workers too, and the same as when they are decoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data.files import DecodedPixels, FileImages
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.training.minibatches import keep_pixels, load_chunks

SHAPE = (3, 8, 8)


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    """Twenty images of noise in two classes."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "images" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 11, 3)).astype(np.uint8)).save(path)
    found = load_samples(tmp_path / "images", image_input(SHAPE, name="x"))
    assert isinstance(found, FileImages)
    return found


def count_decoded(samples: FileImages, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []
    decode = FileImages._decode

    def counted(images: FileImages, index: int, content: bytes) -> np.ndarray:
        decoded.append(index)
        return decode(images, index, content)

    monkeypatch.setattr(FileImages, "_decode", counted)
    return decoded


def test_images_that_fit_are_decoded_once(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decoded(files, monkeypatch)
    row = int(np.prod(SHAPE)) + 1
    kept = files.keeping_pixels(np.arange(20), memory=15 * row)
    expected = files.pixels(np.arange(20))
    decoded.clear()
    for _ in range(3):
        assert np.array_equal(kept.pixels(np.arange(20)), expected)
    assert len(decoded) == 20 + 2 * 5
    assert kept.digests() == files.digests()


def test_what_workers_decode_stays_for_the_next_epoch(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_pixels(files, np.arange(20), 1 << 20)
    chunks = list(np.arange(20).reshape(5, 4))
    first = [chunk.inputs["x"] for chunk in load_chunks(kept, chunks, workers=2)]
    decoded = count_decoded(files, monkeypatch)
    again = [chunk.inputs["x"] for chunk in load_chunks(kept, chunks, workers=0)]
    assert decoded == []
    assert np.array_equal(first, again)


def test_memory_is_a_bound_and_may_be_none() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    for memory, places in ((0, 0), (12, 0), (26, 2), (1 << 20, 3)):
        store = DecodedPixels(np.array([7, 3, 5]), (3, 2, 2), memory)
        assert len(store) == places
        store.keep(3, pixels)
        assert (store.find(3) is not None) == (memory > 12)
        assert store.find(4) is None


def test_samples_that_are_arrays_stay_as_they_are() -> None:
    from tests.calibration.training.chain_worlds import draw_bars

    bars = draw_bars(20)
    assert keep_pixels(bars, np.arange(5), 1 << 20) is bars
