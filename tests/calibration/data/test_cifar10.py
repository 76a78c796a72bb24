"""Tests of CIFAR-10 in binary: its records, its parts, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import InputError
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.published.cifar10 import CLASSES
from calibration.data.splits import PartShare, Splitting


def write_batches(folder: Path, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Writes files of ``count`` records each; returns their images (N, 3, 32, 32) and labels (N,)."""
    random = np.random.default_rng(0)
    images, labels = [], []
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        label = np.arange(count) % 10
        image = random.integers(0, 256, (count, 3, 32, 32), np.uint8)
        records = np.concatenate([label[:, None].astype(np.uint8), image.reshape(count, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        images.append(image)
        labels.append(label)
    return np.concatenate(images), np.concatenate(labels)


def test_records_become_images_and_parts(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    images, labels = write_batches(folder)
    said: list[str] = []
    samples = load_samples(folder, image_input((3, 32, 32)), class_count=10, report=said.append)
    parts = {part: samples.indices_of(part) for part in ("train", "calibrate", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"train": 100, "calibrate": 10, "test": 10}
    assert parts["train"].max() < 100 <= min(parts["calibrate"].min(), parts["test"].min())
    assert sorted(labels[parts["test"]]) == list(range(10))
    everything = np.arange(120)
    np.testing.assert_array_equal(samples.pixels(everything), images)
    np.testing.assert_array_equal(samples.targets(everything), labels)
    assert samples.classes == CLASSES
    assert "--parts calibrate=test:0.5" in said[0]


def test_layout_share_and_names_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    images, _ = write_batches(folder)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n\n")
    splitting = Splitting(share=PartShare.parse("calibrate=train:0.2"))
    samples = load_samples(folder, image_input((32, 32, 3)), splitting=splitting)
    np.testing.assert_array_equal(samples.pixels(np.array([7])), images[7:8].transpose(0, 2, 3, 1))
    assert [len(samples.indices_of(part)) for part in ("train", "calibrate", "test")] == [80, 20, 20]
    assert samples.classes[3] == "class3"


def test_what_is_not_cifar10_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    write_batches(folder)
    with pytest.raises(InputError, match=r"the network takes uint8 images of shape \(N, 1, 28, 28\)"):
        load_samples(folder, image_input((1, 28, 28)))
    (folder / "data_batch_3.bin").rename(folder / "kept")
    with pytest.raises(InputError, match=r"lacks data_batch_3\.bin; unpack"):
        load_samples(folder, image_input((3, 32, 32)))
    (folder / "data_batch_3.bin").write_bytes((folder / "kept").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin has 61459 bytes, which is no whole number of records"):
        load_samples(folder, image_input((3, 32, 32)))
    (folder / "data_batch_3.bin").write_bytes(bytes([17]) + bytes(3072))
    with pytest.raises(InputError, match="names class 17"):
        load_samples(folder, image_input((3, 32, 32)))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch gone'\ntR.")
    with pytest.raises(InputError, match=r"may run code.*cifar-10-binary\.tar\.gz"):
        load_samples(tmp_path, image_input((3, 32, 32)))
