"""CamVid and the Leeds Sports Poses as a user would have them, where they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifacts import VOID, Pose, Preprocessing, TensorSpec
from calibration.data.splits import Splitting
from calibration.dense.loading import load_dense

pytestmark = pytest.mark.real_data


def unpack(name: str, folder: Path) -> Path:
    given = os.environ.get("PAME_REAL_DATA")
    script = Path(given or "") / "unpack.py"
    if given is None or not script.is_file():
        pytest.skip(f"PAME_REAL_DATA names no folder with {name} and unpack.py")
    subprocess.run([sys.executable, str(script), name, str(folder)], check=True)
    return folder


def model_of(task: str, classes: int, preprocessing: Preprocessing) -> Any:
    inputs = (TensorSpec(name="input", dtype="float32", row_shape=preprocessing.row_shape),)
    return SimpleNamespace(spec=SimpleNamespace(
        name="net", task=task, full=SimpleNamespace(inputs=inputs), settings={"classes": classes},
        stated_preprocessing=lambda: preprocessing,
    ))  # fmt: skip


def count(samples: Any) -> list[int]:
    return [len(samples.indices_of(part)) for part in ("train", "calibrate", "test")]


def test_camvid(tmp_path: Path) -> None:
    model = model_of("segmentation", 11, Preprocessing(height=192, width=256))
    root = unpack("camvid", tmp_path)
    samples = load_dense(root, model, splitting=Splitting(), report=lambda _: None)

    assert count(samples) == [367, 101, 233]
    assert samples.classes[3] == "road"
    masks = samples.targets(samples.indices_of("test")[::4])
    shares = np.bincount(masks[masks != VOID], minlength=11) / (masks != VOID).sum()
    assert 0.25 < shares[3] < 0.34
    assert 0.22 < shares[1] < 0.28
    by_drive = Splitting.parse("calibrate=test:0.5@[^_]+", train_queries=True)
    drawn = load_dense(root, model, splitting=by_drive, report=lambda _: None)
    names = [os.path.basename(path).partition(b"_")[0] for path in drawn.images.files.paths]  # type: ignore[attr-defined]  # noqa: PTH119
    groups = [{names[index] for index in drawn.indices_of(part)} for part in ("calibrate", "test")]
    assert groups[1] in ({b"0001TP"}, {b"Seq05VD"})
    assert not groups[0] & groups[1]


def test_leeds_sports_poses(tmp_path: Path) -> None:
    model = model_of("pose", 14, Preprocessing(height=96, width=96))
    samples = load_dense(unpack("lspet", tmp_path), model, splitting=Splitting(), report=lambda _: None)

    assert count(samples) == [2375, 400, 600]
    targets = samples.targets(samples.indices_of("test"))
    assert 0.94 < targets[..., 2].mean() < 0.98
    assert 12 < np.median(targets[:, 0, 3] * 96) < 14
    right = np.concatenate([targets[..., :2], targets[..., 2:3]], axis=2)
    assert Pose().quality((right,), targets).min() == 1
