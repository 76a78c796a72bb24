"""The blocks of MobileNetV2: torchvision's keys and shapes, the names and strides of the blocks."""

from __future__ import annotations

import pytest
import torch

from export.nets.mobilenet import build_features, feature_blocks, round_channels, run_blocks


def test_tensors_are_those_of_torchvision() -> None:
    state = build_features().state_dict(prefix="features.")

    assert len(state) == 312  # 314 in torchvision's file, two of them the classifier's
    assert state["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["features.1.conv.1.weight"].shape == (16, 32, 1, 1)  # no expansion in the first block
    assert state["features.14.conv.0.0.weight"].shape == (576, 96, 1, 1)
    assert state["features.18.0.weight"].shape == (1280, 320, 1, 1)


def test_run_blocks_returns_the_features_after_every_block() -> None:
    features = build_features().eval()
    with torch.inference_mode():
        found, last = run_blocks(features, torch.rand(2, 3, 64, 96))

    assert list(found) == [name for name, _ in feature_blocks(features)] == [f"features.{i}" for i in range(1, 18)]
    strides = {"features.3": 4, "features.6": 8, "features.13": 16, "features.17": 32}
    assert {name: 64 // found[name].shape[2] for name in strides} == strides
    assert last is found["features.17"]


def test_small_images_take_fewer_strides() -> None:
    features = build_features(strides=(1, 1, 1, 2, 2, 1, 2, 1)).eval()
    with torch.inference_mode():
        _, last = run_blocks(features, torch.rand(1, 3, 32, 32))

    assert last.shape == (1, 320, 4, 4)


@pytest.mark.parametrize(("wanted", "rounded"), [(32.0, 32), (11.2, 16), (22.4, 24), (3.0, 8), (48.0, 48)])
def test_channels_are_multiples_of_eight(wanted: float, rounded: int) -> None:
    assert round_channels(wanted) == rounded
