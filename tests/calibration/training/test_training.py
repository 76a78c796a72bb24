"""Training: it learns, it leaves the frozen alone, and an interrupted one continues as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts import Classification, UsageError, to_plain
from calibration.data.arrays import ArrayImages, make_samples
from calibration.data.splits import split_indices
from calibration.training.checkpoints import Checkpoint, History, Progress
from calibration.training.config import FrozenConfig, JointConfig
from calibration.training.end_to_end import measure_exits, train_joint
from export.nets.multi_exit import MultiExitNet, attach_heads
from export.nets.resnet import ResNet, ResNetConfig

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def bars() -> ArrayImages:
    """Upright against lying bars in noise: easy, but not linear in the pixels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 320)
    images = random.integers(0, 60, (320, *SHAPE)).astype(np.uint8)
    for row, label in enumerate(labels):
        place = random.integers(1, 7)
        if label:
            images[row, 0, place, :] = 255
        else:
            images[row, 0, :, place] = 255
    splits = split_indices(labels, {"train": 0.6, "calibrate": 0.2, "test": 0.2}, seed=0)
    return make_samples("bars", images, labels, ("upright", "lying"), splits)


def make_net() -> MultiExitNet:
    torch.manual_seed(0)
    backbone = ResNet(ResNetConfig(depth=20, classes=2, input_shape=SHAPE))
    return attach_heads(backbone, SHAPE, classes=2, kind="complex", every=3)


def checkpoint_at(folder: Path, config: JointConfig, inputs: dict[str, str] | None = None) -> Checkpoint:
    return Checkpoint(folder=folder, inputs=inputs or {}, parameters=to_plain(config), notes={}, report=lambda _: None)


def train(
    net: MultiExitNet, samples: ArrayImages, config: JointConfig, folder: Path, inputs: dict[str, str] | None = None
) -> History:
    return train_joint(net, samples, Classification(), config, checkpoint_at(folder, config, inputs))


CONFIG = JointConfig(epochs=3, backbone_epochs=1, batch_size=32, learning_rate=0.05, crop_padding=0)


def test_joint_training_teaches_every_exit(bars: ArrayImages, tmp_path: Path) -> None:
    net = make_net()
    history = train(net, bars, dataclasses.replace(CONFIG, epochs=7), tmp_path / "checkpoint")
    assert [entry["phase"] for entry in history] == ["backbone", *["joint"] * 6]
    accuracy = measure_exits(net, bars, Classification(), "test")
    assert set(accuracy) == {*net.cut_names, "final"}
    assert min(accuracy.values()) > 0.9, accuracy


def test_the_first_phase_leaves_the_heads_alone(bars: ArrayImages, tmp_path: Path) -> None:
    net, untrained = make_net(), make_net()
    one = JointConfig(epochs=2, backbone_epochs=1, batch_size=32, crop_padding=0)

    class StopError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(StopError):
            train(net, bars, one, tmp_path / "checkpoint")
    for now, before in zip(net.heads.parameters(), untrained.heads.parameters(), strict=True):
        assert torch.equal(now, before)
    assert not torch.equal(net.backbone.conv1.weight, untrained.backbone.conv1.weight)


@pytest.mark.parametrize(("every_s", "after", "killed"), [(1e9, 1, 3), (0.0, 5, 3)])
def test_an_interrupted_training_continues_to_the_same_end(
    bars: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, after: int, killed: int
) -> None:
    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIG, crop_padding=1)
    whole = make_net()
    history = train(whole, bars, config, tmp_path / "whole", {"data": "1"})
    monkeypatch.setattr("calibration.training.checkpoints.SAVE_EVERY_S", every_s)
    saved: list[Progress] = []

    class KilledError(Exception):
        pass

    save = Checkpoint.save

    def save_then_die(*args: object) -> None:
        save(*args)
        saved.append(args[-1])
        if len(saved) % after == 0:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_then_die)
        for _ in range(killed):
            with pytest.raises(KilledError):
                train(make_net(), bars, config, tmp_path / "pieces", {"data": "1"})
    assert any(progress.steps for progress in saved) == (every_s == 0)
    pieces = make_net()
    again = train(pieces, bars, config, tmp_path / "pieces", {"data": "1"})
    assert [entry["accuracy"] for entry in again] == [entry["accuracy"] for entry in history]
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in history]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, pieces.state_dict()[name]), name


def test_another_training_does_not_continue_this_one(bars: ArrayImages, tmp_path: Path) -> None:
    short = JointConfig(epochs=1, backbone_epochs=0, batch_size=32, crop_padding=0)
    train(make_net(), bars, short, tmp_path / "checkpoint", {"data": "1"})
    net = make_net()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    before = net.backbone.conv1.weight.clone()
    assert checkpoint_at(tmp_path / "checkpoint", short, {"data": "2"}).resume(net, optimiser) == Progress()
    assert torch.equal(net.backbone.conv1.weight, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 2, "backbone_epochs": 2}, "at least one epoch must train the exits"),
        ({"backbone_epochs": -1}, "--backbone-epochs -1"),
        ({"batch_size": 1}, "at least 2"),
    ],
)
def test_settings_that_cannot_be(changed: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JointConfig(**changed)


@pytest.mark.parametrize(
    ("steps", "augment", "epochs"),
    [(1, "none", 100), (3, "none", 100), (10, "none", 30), (3, "crop", 20), (900, "crop", 4)],
)
def test_a_small_train_part_is_gone_through_more_often(steps: int, augment: str, epochs: int) -> None:
    assert FrozenConfig(augment=augment).count_epochs(steps) == epochs
    assert FrozenConfig(augment=augment, epochs=7).count_epochs(steps) == 7
