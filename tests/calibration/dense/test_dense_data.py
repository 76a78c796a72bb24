"""Dense data: layouts of the field, masks and joints in the geometry of their images, both moved in training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts import VOID, InputError, Preprocessing, TensorSpec, UsageError
from calibration.data.splits import Splitting, split_groups
from calibration.dense.layouts import find_masks
from calibration.dense.loading import has_answers, load_dense
from calibration.dense.people import find_people, frame_person
from calibration.dense.samples import DenseImages
from calibration.training.config import JointConfig
from calibration.training.minibatches import draw_epoch

QUIET = Splitting()


def model_of(task: str, classes: int, preprocessing: Preprocessing) -> Any:
    """Returns what loading reads of a model."""
    inputs = (TensorSpec(name="input", dtype="float32", row_shape=preprocessing.row_shape),)
    return SimpleNamespace(spec=SimpleNamespace(
        name="net", task=task, full=SimpleNamespace(inputs=inputs), settings={"classes": classes},
        stated_preprocessing=lambda: preprocessing,
    ))  # fmt: skip


def write_image(path: Path, pixels: np.ndarray, palette: Sequence[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def write_pair(root: Path, image: str, mask: str, seed: int = 0, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Writes an image whose brightness says the class of each pixel, and its mask; returns the classes."""
    classes = np.random.default_rng(seed).integers(0, 3, (size[0] // 4, size[1] // 4)).repeat(4, 0).repeat(4, 1)
    write_image(root / image, np.repeat((classes * 100)[..., None], 3, axis=2).astype(np.uint8))
    write_image(root / mask, classes.astype(np.uint8))
    return classes


def load(root: Path, size: tuple[int, int] = (8, 8), splitting: Splitting = QUIET, **how: Any) -> DenseImages:
    preprocessing = Preprocessing(height=size[0], width=size[1], interpolation="nearest", **how)
    return load_dense(root, model_of("segmentation", 3, preprocessing), splitting=splitting, report=lambda _: None)


LAYOUTS = {
    "camvid": ("images/{part}/{name}.png", "masks/{part}/{name}.png"),
    "segnet": ("{part}/{name}.png", "{part}annot/{name}.png"),
    "cityscapes": (
        "leftImg8bit/{part}/bonn/bonn_{name}_leftImg8bit.png", "gtFine/{part}/bonn/bonn_{name}_gtFine_labelTrainIds.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found(tmp_path: Path, layout: str) -> None:
    wanted = {}
    for number, part in enumerate(("train", "train", "val", "test")):
        image, mask = (text.format(part=part, name=f"n{number}") for text in LAYOUTS[layout])
        wanted[image] = write_pair(tmp_path, image, mask, seed=number)

    samples = load(tmp_path)

    assert {part: len(samples.indices_of(part)) for part in ("train", "calibrate", "test")} == {
        "train": 2, "calibrate": 1, "test": 1
    }  # fmt: skip
    names = [path.decode() for path in find_masks(tmp_path).images]
    for index, name in enumerate(names):
        assert np.array_equal(samples.targets(np.array([index]))[0], wanted[name])


def test_pascal_voc_is_found_by_its_lists(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "trainval.txt").write_text("b\nc\n")

    found = find_masks(tmp_path)
    assert found.images.tolist() == [b"JPEGImages/b.jpg", b"JPEGImages/c.jpg"]
    assert (found.parts if found.parts is None else found.parts.tolist()) == ["train", "calibrate"]


def test_what_is_missing_or_mixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs images and masks: images/ and masks/"):
        load(tmp_path)
    write_pair(tmp_path, "images/train/a.png", "masks/train/a.png")
    write_image(tmp_path / "images/train/b.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="1 images have no mask, images/train/b.png"):
        load(tmp_path)
    write_image(tmp_path / "masks/train/b.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"b.png is no mask: its pixels are of kind 'RGB'"):
        load(tmp_path).targets(np.array([0, 1]))
    write_image(tmp_path / "masks/train/b.png", np.full((8, 8), 3, np.uint8))
    with pytest.raises(InputError, match=r"b.png holds the class 3, and the network tells 3 apart .*ignore_index"):
        load(tmp_path).targets(np.array([0, 1]))


def test_palettes_and_void_values(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 2, 3], [255, 0, 1, 2]], np.uint8)
    write_image(tmp_path / "images/a.png", np.zeros((2, 4, 3), np.uint8))
    write_image(tmp_path / "masks/a.png", classes, palette=[200, 0, 0, 9, 9, 9, 0, 0, 7, 1, 2, 3])
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c", "void"], "ignore_index": 3}))

    samples = load(tmp_path, (2, 4), Splitting(train_queries=True))

    assert samples.classes == ("a", "b", "c")
    assert samples.targets(np.array([0]))[0].tolist() == [[0, 1, 2, VOID], [VOID, 0, 1, 2]]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "void", "c"], "ignore_index": 1}))
    with pytest.raises(InputError, match="lies between classes"):
        load(tmp_path, (2, 4))
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    with pytest.raises(InputError, match="names 2 classes .* Export one with --classes 2"):
        load(tmp_path, (2, 4))


@pytest.mark.parametrize(
    "how", [{}, {"resize": "centre-crop", "shorter_side": 16}, {"resize": "squash-crop", "shorter_side": 16}]
)
def test_masks_have_the_geometry_of_their_images(tmp_path: Path, how: dict[str, Any]) -> None:
    for number in range(3):
        write_pair(tmp_path, f"images/train/{number}.png", f"masks/train/{number}.png", seed=number, size=(32, 48))

    samples = load(tmp_path, (12, 16), **how)

    indices = np.arange(3)
    seen = samples.pixels(indices)[:, 0]
    assert np.array_equal(samples.targets(indices), np.round(seen / 100))
    assert len(np.unique(seen)) == 3


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    for number in range(8):
        write_pair(tmp_path, f"images/train/{number}.png", f"masks/train/{number}.png", seed=number, size=(16, 24))
    samples = load(tmp_path, (16, 24), mean=(0.5,))
    config = JointConfig(batch_size=8, augment="crop-mirror", crop_padding=3)

    ((chunk,),) = draw_epoch(samples, config, 0, workers=0).batches

    seen = np.round((chunk.inputs["input"][:, 0] + 0.5) * 2.55)
    targets = np.asarray(chunk.targets)
    assert np.array_equal(targets[targets != VOID], seen[targets != VOID])
    assert (seen[targets == VOID] == 0).all()
    assert (targets == VOID).any(axis=(1, 2)).sum() > 3
    plain = samples.targets(samples.indices_of("train"))
    assert not np.array_equal(np.sort(targets.reshape(8, -1), axis=None), np.sort(plain.reshape(8, -1), axis=None))


def test_data_has_digests_of_images_and_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "images/train/a.png", "masks/train/a.png")
    before = load(tmp_path).digests()
    write_image(tmp_path / "masks/train/a.png", np.zeros((8, 8), np.uint8))
    after = load(tmp_path).digests()

    assert {name for name in before if before[name] != after[name]} == {"labels"}


def test_groups_are_never_divided(tmp_path: Path) -> None:
    drives = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    for number, drive in enumerate(drives):
        write_pair(tmp_path, f"images/{drive}_{number}.png", f"masks/{drive}_{number}.png")

    samples = load(tmp_path, splitting=Splitting.parse("@[^_]+", train_queries=True))

    names = [path.decode()[len("images/")] for path in find_masks(tmp_path).images]
    groups = [{names[index] for index in samples.indices_of(part)} for part in ("train", "calibrate", "test")]
    assert all(groups)
    assert sum(map(len, groups)) == 4
    with pytest.raises(UsageError, match="the name a_0.png does not begin like that"):
        load(tmp_path, splitting=Splitting.parse("@x", train_queries=True))
    with pytest.raises(UsageError, match="no regular expression"):
        Splitting.parse("calibrate=test:0.5@[", train_queries=True)
    with pytest.raises(InputError, match="has 1 groups .* too few"):
        split_groups(np.array(["a", "a"]), {"calibrate": 0.5, "test": 0.5}, seed=0, name="x")


def test_a_share_of_a_part_is_drawn_by_groups(tmp_path: Path) -> None:
    for number in range(12):
        write_pair(tmp_path, f"images/test/d{number // 3}_{number}.png", f"masks/test/d{number // 3}_{number}.png")
    write_pair(tmp_path, "images/train/d9_0.png", "masks/train/d9_0.png")

    samples = load(tmp_path, splitting=Splitting.parse("calibrate=test:0.5@[^_]+", train_queries=True))

    names = [path.decode().rpartition("/")[2][:2] for path in find_masks(tmp_path).images]
    calibrate, test = ({names[index] for index in samples.indices_of(part)} for part in ("calibrate", "test"))
    assert (len(calibrate), len(test)) == (2, 2)
    assert not calibrate & test


def write_crops(root: Path, part: str, joints: list[list[list[float]]], size: tuple[int, int] = (20, 40)) -> None:
    people = []
    for number, places in enumerate(joints):
        write_image(root / "images" / part / f"{part}{number}.png", np.zeros((*size, 3), np.uint8))
        people.append({"image": f"{part}{number}.png", "keypoints": places})
    plain = {"joint_names": ["neck", "top", "left", "right"], "flip_pairs": [[2, 3]], "head_segment": [0, 1]}
    (root / f"keypoints_{part}.json").write_text(json.dumps({**plain, "people": people}))


POSE = [[10, 10, 1], [10, 4, 1], [30, 15, 1], [0, 0, 0]]


def load_pose(root: Path, joints: int, **how: Any) -> DenseImages:
    preprocessing = Preprocessing(**{"height": 32, "width": 32, **how})
    return load_dense(root, model_of("pose", joints, preprocessing), splitting=QUIET, report=lambda _: None)


def test_joints_are_shares_of_the_input(tmp_path: Path) -> None:
    headless = [[1, 1, 1], [0, 0, 0], [2, 2, 1], [3, 3, 1]]
    for part in ("train", "val", "test"):
        write_crops(tmp_path, part, [POSE, headless])

    samples = load_pose(tmp_path, 4)

    assert len(samples.images) == 3  # nobody without a head
    (found,) = samples.targets(np.array([0]))
    assert found[:3, :3] == pytest.approx(np.array([[0.25, 0.5, 1], [0.25, 0.2, 1], [0.75, 0.75, 1]]))
    assert found[:, 3:] == pytest.approx(np.tile([6 / 40, 6 / 20], (4, 1)))
    assert found[3, 2] == 0
    cropped = load_pose(tmp_path, 4, resize="centre-crop", shorter_side=32).targets(np.array([0]))[0]
    assert cropped[0, :3] == pytest.approx([0, 0.5, 1])  # 64 x 32, of which the middle 32 x 32 are seen
    assert cropped[2, :3] == pytest.approx([1, 0.75, 0])  # just outside
    assert cropped[0, 3:] == pytest.approx([6 / 20, 6 / 20])
    with pytest.raises(InputError, match="names 4 joints .* Export one with --classes 4"):
        load_pose(tmp_path, 5)


def test_joints_move_with_their_images_and_swap_sides(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_crops(tmp_path, part, [[*POSE[:2], [26, 15, 1], POSE[3]]] * 16, size=(32, 32))
    samples = load_pose(tmp_path, 4)
    config = JointConfig(batch_size=16, augment="crop-mirror", crop_padding=2)

    ((chunk,),) = draw_epoch(samples, config, 0, workers=0).batches

    mirrored = 0
    for found in np.asarray(chunk.targets):
        visible = found[:, 2].tolist()
        assert visible in ([1, 1, 1, 0], [1, 1, 0, 1])
        mirrored += visible[3] == 1
        x, y = found[0, :2] * 32
        assert abs((32 - x if visible[3] else x) - 10) <= 2
        assert abs(y - 10) <= 2
        side = found[3 if visible[3] else 2, :2] * 32
        assert abs(abs(side[0] - x) - 16) < 1e-4
        assert side[1] - y == pytest.approx(5, abs=1e-4)
    assert 2 < mirrored < 14


def test_coco_people_are_cut_out(tmp_path: Path) -> None:
    names = [f"joint{number}" for number in range(17)]
    joints = np.zeros((17, 3))
    joints[[5, 6], :2], joints[[11, 12], :2] = [[40, 20], [60, 20]], [[44, 60], [56, 60]]
    joints[[5, 6, 11, 12], 2] = (2, 1, 2, 2)
    person = {
        "image_id": 7, "iscrowd": 0, "num_keypoints": 4, "bbox": [30, 10, 40, 80],
        "keypoints": joints.reshape(-1).tolist(),
    }  # fmt: skip
    torsoless = {**person, "keypoints": [1, 1, 2] + [0] * 48, "num_keypoints": 1}
    pixels = np.zeros((100, 90, 3), np.uint8)
    pixels[18:23, 38:43] = 255  # the left shoulder
    for part in ("train", "val"):
        write_image(tmp_path / f"{part}2017" / "p.png", pixels)
        plain = {
            "categories": [{"name": "person", "keypoints": names}], "images": [{"id": 7, "file_name": "p.png"}],
            "annotations": [person, torsoless, {**person, "iscrowd": 1}],
        }  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"person_keypoints_{part}2017.json").write_text(json.dumps(plain))

    samples = load_pose(tmp_path, 17)

    assert len(samples.images) == 2
    (found,) = samples.targets(np.array([0]))
    assert found[:, 2].sum() == 4
    assert found[5, 3:] == pytest.approx(np.full(2, 0.5 * 40 / 100))  # half the torso, in a square of 80 x 1.25 pixels
    x, y = (found[5, :2] * 32).astype(int)
    (image,) = samples.pixels(np.array([0]))
    assert image[0, y, x] > 200
    assert image.mean() < 10


def test_mpii_people_are_cut_out_by_centre_and_scale(tmp_path: Path) -> None:
    joints = [[50.0, 50.0]] * 16
    joints[8], joints[9] = [50, 40], [50, 30]
    person = {
        "image": "p.png", "joints": joints, "joints_vis": [1] * 15 + [0], "center": [50, 50], "scale": 0.4
    }  # fmt: skip
    write_image(tmp_path / "images" / "p.png", np.zeros((100, 100, 3), np.uint8))
    (tmp_path / "annot").mkdir()
    for part in ("train", "valid"):
        (tmp_path / "annot" / f"{part}.json").write_text(json.dumps([person]))

    (found, _) = load_pose(tmp_path, 16).targets(np.array([0, 1]))

    assert found[8, :3] == pytest.approx([0.5, 0.4, 1])
    assert found[0, 3:] == pytest.approx([0.1, 0.1])
    assert found[15, 2] == 0
    assert frame_person((10, 10, 40, 80), 1.0) == (-20, 0, 80, 100)


def test_a_crop_that_shows_no_joint_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_crops(tmp_path, part, [[[1, 10, 1], [1, 4, 1], [2, 15, 1], [0, 0, 0]]])

    with pytest.raises(InputError, match=r"test0.png: no joint of the person lies within .* resize squash"):
        load_pose(tmp_path, 4, resize="centre-crop", shorter_side=32)


def test_images_alone_are_queries_without_answers(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert not has_answers(tmp_path)
    write_pair(tmp_path / "pairs", "images/a.png", "masks/a.png")
    assert has_answers(tmp_path / "pairs")
    assert not has_answers(tmp_path / "queries.npz")


def test_files_of_other_forms_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs images and places of joints: annotations/person_keypoints"):
        find_people(tmp_path)
    (tmp_path / "keypoints_train.json").write_text('{"people": 3}')
    with pytest.raises(InputError, match="keypoints_train.json cannot be read as places of joints: KeyError"):
        find_people(tmp_path)
