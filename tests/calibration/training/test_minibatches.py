"""Mini-batches: the same whatever the number of workers; what a worker cannot read is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts import InputError
from calibration.data.files import FileImages
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.minibatches import Augmentation, draw_epoch, load_chunks, training_indices
from tests.calibration.training.chain_worlds import draw_bars


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(15):
            pixels = random.integers(0, 255, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return load_samples(root, image_input((3, 8, 8)))


def test_workers_change_nothing(files: FileImages) -> None:
    config = JointConfig(batch_size=4, augment="crop-mirror")
    alone, together = (
        [(chunk.inputs["images"], chunk.targets) for (chunk,) in draw_epoch(files, config, 3, workers=workers).batches]
        for workers in (0, 2)
    )
    assert len(alone) == len(together) == 3
    for (x, y), (u, v) in zip(alone, together, strict=True):
        assert np.array_equal(x, u)
        assert np.array_equal(y, v)


def test_each_batch_is_augmented_in_its_own_way() -> None:
    bars = draw_bars(40)
    one = bars.indices_of("train")[:1]
    config = JointConfig(augment="crop", crop_padding=3, batch_size=2)
    same = np.repeat(one, 8)
    chunks = list(load_chunks(bars, [same, same], augmentation=Augmentation.of(config, 0)))
    assert not np.array_equal(chunks[0].inputs["images"], chunks[1].inputs["images"])


def test_what_a_worker_cannot_read_is_named(files: FileImages, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    samples = load_samples(tmp_path, image_input((3, 8, 8)))
    (tmp_path / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png cannot be read as an image"):
        list(load_chunks(samples, [np.arange(5), np.arange(5, 10)], workers=2))


def test_samples_without_labels_or_pixels_come_as_they_are() -> None:
    class Own:
        name, labelled = "own", False

        def indices_of(self, part: str) -> np.ndarray:
            return np.arange(6) if part == "train" else np.zeros(0, np.int64)

        def inputs(self, indices: np.ndarray) -> Mapping[str, np.ndarray]:
            return {"x": indices.astype(np.float32)}

        def targets(self, indices: np.ndarray) -> np.ndarray:
            raise AssertionError("there are none")

        def digests(self) -> Mapping[str, str]:
            return {}

    for workers in (0, 1):
        chunks = list(load_chunks(Own(), [np.arange(3), np.arange(3, 6)], workers=workers))
        assert [chunk.inputs["x"].tolist() for chunk in chunks] == [[0, 1, 2], [3, 4, 5]]
        assert [chunk.targets for chunk in chunks] == [None, None]


def test_so_many_samples_are_drawn_from_the_seed() -> None:
    bars = draw_bars(100)
    some = training_indices(bars, FrozenConfig(samples=10))
    assert len(some) == 10
    assert set(some) <= set(bars.indices_of("train"))
    assert np.array_equal(some, training_indices(bars, JointConfig(samples=10)))
    assert not np.array_equal(some, training_indices(bars, FrozenConfig(samples=10, seed=1)))
    assert len(training_indices(bars, FrozenConfig(samples=10_000))) == len(bars.indices_of("train"))


def test_a_train_part_without_samples_is_named() -> None:
    bars = draw_bars(20)
    nothing = {**bars.parts, "train": np.zeros(0, np.int64)}
    with pytest.raises(InputError, match="no samples in its train part.*--parts"):
        training_indices(dataclasses.replace(bars, parts=nothing), FrozenConfig())
