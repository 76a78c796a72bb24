"""Data: three disjoint parts, one's own images in several forms, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from artifacts import InputError, UsageError
from calibration.data.arrays import ArrayImages, make_samples
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS, as_batch
from calibration.data.splits import Splitting, split_indices
from calibration.training.config import JointConfig
from calibration.training.minibatches import Augmentation, augment, draw_epoch

SHAPE = (1, 6, 5)
WANTED = image_input(SHAPE)


def numbered(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, *shape)).copy()


def small(count: int = 40) -> ArrayImages:
    labels = np.arange(count) % 4
    splits = split_indices(labels, {"train": 0.5, "calibrate": 0.25, "test": 0.25}, seed=1)
    return make_samples("small", numbered(count), labels, tuple("abcd"), splits)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_the_parts_cover_everything_once_and_every_class_evenly(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    parts = split_indices(array, {"train": 0.5, "calibrate": 0.25, "test": 0.25}, seed=seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for label in set(labels):
        assert abs(np.sum(array[parts["train"]] == label) - 0.5 * np.sum(array == label)) <= 0.5
    again = split_indices(array, {"train": 0.5, "calibrate": 0.25, "test": 0.25}, seed=seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_overlapping_parts_are_refused() -> None:
    good = small()
    splits = {**good.parts, "test": np.append(good.parts["test"], good.parts["train"][0])}
    with pytest.raises(InputError, match="overlap"):
        make_samples("small", good.images, good.labels, good.classes, splits)


def test_the_digests_tell_parts_apart() -> None:
    one, other = small().digests(), small(44).digests()
    assert set(one) == {"images", "labels", *(f"indices.{part}" for part in PARTS)}
    assert one == small().digests()
    assert not set(one.values()) & set(other.values())


def test_an_unknown_part_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'calibrate'"):
        small().indices_of("calibration")


def test_inputs_are_normalised() -> None:
    data = small()
    got = as_batch(data.inputs(np.array([3, 5])))
    (mean,), (std,) = data.preprocessing.mean, data.preprocessing.std
    expected = (data.images[[3, 5]] / 255 - mean) / std
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    train = as_batch(data.inputs(data.indices_of("train")))
    assert abs(train.mean()) < 0.01
    assert abs(train.std() - 1) < 0.01


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: x[:, 0], lambda x: x.transpose(0, 2, 3, 1)],
    ids=["NCHW", "NHW", "NHWC"],
)
def test_npz_in_every_documented_form(tmp_path: Path, form: Callable[[np.ndarray], np.ndarray]) -> None:
    images, labels = numbered(30), np.arange(30) % 3
    data = load_samples(save(tmp_path / "x.npz", images=form(images), labels=labels), WANTED)
    assert np.array_equal(data.images, images)
    assert data.classes == ("0", "1", "2")
    assert [len(data.indices_of(part)) for part in PARTS] == [12, 12, 6]


def test_queries_without_labels_are_split_at_random(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", images=numbered(100))
    data = load_samples(path, WANTED)
    assert (data.labelled, data.classes, data.split_seed) == (False, (), 0)
    assert [len(data.indices_of(part)) for part in PARTS] == [0, 80, 20], "nothing can be trained with them"
    assert sorted(np.concatenate([data.indices_of(part) for part in PARTS])) == list(range(100))
    assert data.indices_of("calibrate").tolist() != list(range(80)), "a log has an order"
    other = load_samples(path, WANTED, splitting=Splitting(seed=1))
    assert other.split_seed == 1
    assert other.indices_of("test").tolist() != data.indices_of("test").tolist()
    assert "labels" not in data.digests()
    with pytest.raises(UsageError, match="has no labels.*name labelled data with --data"):
        data.targets(np.arange(3))
    split = np.array(["test", "calibrate"] * 2)
    own = load_samples(save(tmp_path / "y.npz", images=numbered(4), split=split), WANTED)
    assert own.split_seed is None
    assert {part: own.indices_of(part).tolist() for part in PARTS} == {"train": [], "calibrate": [1, 3], "test": [0, 2]}


def test_npz_with_its_own_parts(tmp_path: Path) -> None:
    split = np.array(["test", "train", "calibrate", "train"])
    path = save(tmp_path / "x.npz", images=numbered(4), labels=np.zeros(4, int), split=split)
    data = load_samples(path, WANTED)
    assert {part: data.indices_of(part).tolist() for part in PARTS} == {"train": [1, 3], "calibrate": [2], "test": [0]}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(4, int)}, "expected arrays 'images' and, where known, 'labels'"),
        ({"images": numbered(4), "label": np.zeros(4, int)}, r"\['label'\] are unknown; name the labels 'labels'"),
        ({"images": numbered(4).astype(np.float32), "labels": np.zeros(4, int)}, "takes uint8 images"),
        ({"images": numbered(4, (1, 7, 7)), "labels": np.zeros(4, int)}, r"shape \(N, 1, 6, 5\)"),
        ({"images": numbered(4), "labels": np.zeros(3, int)}, r"\(3,\)"),
        ({"images": numbered(4), "labels": np.full(4, 0.5)}, "labels must be integers"),
        ({"images": numbered(4), "labels": np.full(4, -1)}, "labels must be integers from 0"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_samples(save(tmp_path / "x.npz", **arrays), WANTED)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_arrays_of_any_number_of_channels_are_taken_and_image_files_are_not(tmp_path: Path, channels: int) -> None:
    want = image_input((channels, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, channels)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 2)
    samples = load_samples(tmp_path / "data.npz", want)
    row = samples.inputs(np.array([3]))["images"]
    assert row.shape == (1, channels, 8, 8)
    assert np.corrcoef(row[0].ravel(), images[3].transpose(2, 0, 1).ravel())[0, 1] == pytest.approx(1, abs=1e-6)
    write_images(tmp_path / "folder", 4)
    with pytest.raises(InputError, match=f"takes {channels} channels.*npz"):
        load_samples(tmp_path / "folder", want).inputs(np.array([0]))


def write_images(root: Path, count: int, *, mode: str = "L") -> None:
    root.mkdir(parents=True)
    for number in range(count):
        Image.new(mode, (10, 12), number if mode == "L" else (number, 0, 0)).save(root / f"{number:03}.png")


def test_class_folders_are_read_and_resized(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 10)
    write_images(tmp_path / "dog", 5, mode="RGB")
    data = load_samples(tmp_path, WANTED)
    assert data.inputs(np.arange(15))["images"].shape == (15, *SHAPE)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0] * 10 + [1] * 5
    assert data.pixels(np.array([7]))[0, 0, 3, 3] == 7
    colour = load_samples(tmp_path, image_input((3, 6, 5)))
    assert colour.pixels(np.array([14]))[0, :, 2, 2].tolist() == [4, 0, 0]


def test_class_folders_with_their_own_parts(tmp_path: Path) -> None:
    for part, count in {"train": 3, "calibrate": 2, "test": 1}.items():
        write_images(tmp_path / part / "cat", count)
    data = load_samples(tmp_path, WANTED)
    assert [len(data.indices_of(part)) for part in PARTS] == [3, 2, 1]
    assert data.classes == ("cat",)


def test_a_folder_of_images_alone_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "log", 10)
    (tmp_path / "log" / "notes.txt").write_text("no image")
    data = load_samples(tmp_path / "log", WANTED)
    assert not data.labelled
    assert data.pixels(np.array([7]))[0, 0, 3, 3] == 7
    assert [len(data.indices_of(part)) for part in PARTS] == [0, 8, 2]
    write_images(tmp_path / "log" / "cat", 1)
    with pytest.raises(InputError, match=r"images in class folders and images beside them.*000\.png"):
        load_samples(tmp_path / "log", WANTED)
    for part, count in {"train": 0, "calibrate": 2, "test": 1}.items():
        write_images(tmp_path / "parts" / part, count)
    parts = load_samples(tmp_path / "parts", WANTED)
    assert (parts.labelled, [len(parts.indices_of(part)) for part in PARTS]) == (False, [0, 2, 1])


def test_folders_that_are_no_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: there is nothing of that name"):
        load_samples(tmp_path / "nowhere", WANTED)
    (tmp_path / "some.txt").touch()
    with pytest.raises(InputError, match="expected a folder"):
        load_samples(tmp_path / "some.txt", WANTED)
    with pytest.raises(InputError, match="holds no images"):
        load_samples(tmp_path, WANTED)
    write_images(tmp_path / "train" / "cat", 1)
    with pytest.raises(InputError, match="not all of train, calibrate, test"):
        load_samples(tmp_path, WANTED)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png cannot be read as an image"):
        load_samples(tmp_path, WANTED)


def test_an_epoch_is_decided_by_seed_and_number_alone() -> None:
    data = small()

    config = JointConfig(batch_size=8, crop_padding=1)

    def take(epoch: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(chunk.inputs["images"], chunk.targets) for (chunk,) in draw_epoch(data, config, epoch).batches]

    first, again, other = take(), take(), take(epoch=1)
    assert len(first) == draw_epoch(data, config, 0).steps == 2
    for batch, same in zip(first, again, strict=True):
        assert np.array_equal(batch[0], same[0])
        assert np.array_equal(batch[1], same[1])
    assert not np.array_equal(first[0][1], other[0][1]) or not np.array_equal(first[0][0], other[0][0])
    seen = np.concatenate([labels for _, labels in first])
    assert len(seen) == 16
    with pytest.raises(UsageError, match="lower --train-batch-size"):
        draw_epoch(data, JointConfig(batch_size=21), 0)


def test_augmentation_shifts_and_mirrors_and_does_nothing_else() -> None:
    images = np.random.default_rng(0).integers(1, 255, (64, 1, 6, 5), dtype=np.uint8)
    how = Augmentation(way="crop-mirror", padding=1, seed=(0, 1))
    out = augment(images, how.draw(0, 64, (6, 5)))
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kinds = set()
    for row in range(64):
        found = [
            (down, right, mirror)
            for down in range(3)
            for right in range(3)
            for mirror in (1, -1)
            if np.array_equal(out[row], padded[row, :, down : down + 6, right : right + 5][..., ::mirror])
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert len(kinds) > 9
