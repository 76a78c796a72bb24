"""Tests of weights of others: a state dict says which network of a family it is of, whatever its names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from artifacts import GraphError, InputError, RunFolder, UsageError
from engines import run_graph
from export import ExportOptions, Family, ResNet, ResNetConfig, export_model, read_weights, rebuild_net
from export.nets import mobilenetv2, resnet, vgg
from export.nets.family import settle_options
from export.nets.mobilenetv2 import MobileNet, MobileNetConfig
from export.nets.vgg import VGG, VGGConfig
from export.nets.weights import strip_parallel


def rename(state: Mapping[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def settle(family: Family, state: Mapping[str, Tensor], **given: Any) -> Any:
    assert family.fit_state is not None
    return settle_options(family, family.config(**given), family.fit_state(state), where="FILE")


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(depth=56, shortcut="padding", classes=100, input_shape=(3, 32, 32)),
        ResNetConfig(depth=20, input_shape=(1, 28, 28)),
        ResNetConfig(depth=18, classes=1000, input_shape=(3, 224, 224)),
        ResNetConfig(depth=34, classes=7, input_shape=(3, 224, 224)),
        ResNetConfig(depth=50, classes=1000, input_shape=(3, 224, 224)),
        ResNetConfig(depth=101, classes=5, input_shape=(3, 224, 224)),
        ResNetConfig(depth=18, stem="cifar", input_shape=(3, 32, 32)),
    ],
)
def test_a_resnet_is_told_by_its_weights(config: ResNetConfig) -> None:
    with torch.device("meta"):
        state = ResNet(config).state_dict()
    assert settle(resnet.FAMILY, state) == config
    cifar = rename(state, ("fc.", "linear."), (".downsample.", ".shortcut."))
    assert settle(resnet.FAMILY, cifar) == config
    assert settle(resnet.FAMILY, cifar, depth=config.depth) == config
    with pytest.raises(UsageError, match="--classes 11: FILE is of a network with classes"):
        settle(resnet.FAMILY, state, classes=11)


@pytest.mark.parametrize(
    "config",
    [
        VGGConfig(),
        VGGConfig(width=16, norm="none", classes=3, input_shape=(1, 32, 32)),
        VGGConfig(hidden=512, classes=100),
        VGGConfig(style="imagenet", norm="none", classes=1000, input_shape=(3, 224, 224)),
        VGGConfig(style="imagenet", classes=20, input_shape=(3, 224, 224)),
    ],
)
def test_a_vgg_is_told_by_its_weights(config: VGGConfig) -> None:
    with torch.device("meta"):
        state = VGG(config).state_dict()
    assert settle(vgg.FAMILY, state) == config


def test_a_vgg_has_torchvisions_keys() -> None:
    with torch.device("meta"):
        plain = VGG(VGGConfig(style="imagenet", norm="none", classes=1000, input_shape=(3, 224, 224))).state_dict()
        normed = VGG(VGGConfig(style="imagenet", classes=1000, input_shape=(3, 224, 224))).state_dict()
    assert len(plain) == 32
    assert sum(value.numel() for value in plain.values()) == 138_357_544
    assert plain["features.28.weight"].shape == (512, 512, 3, 3)
    assert plain["classifier.0.weight"].shape == (4096, 25088)
    assert normed["features.41.running_var"].shape == (512,)
    assert normed["features.40.bias"].shape == (512,)
    assert normed["classifier.6.weight"].shape == (1000, 4096)


@pytest.mark.parametrize("config", [MobileNetConfig(), MobileNetConfig(width=50, classes=10)])
def test_a_mobilenet_is_told_by_its_weights(config: MobileNetConfig) -> None:
    with torch.device("meta"):
        state = MobileNet(config).state_dict()
    assert settle(mobilenetv2.FAMILY, state) == config
    small = settle(mobilenetv2.FAMILY, state, style="cifar", input_shape=(3, 32, 32))
    assert (small.style, small.input_shape) == ("cifar", (3, 32, 32))


def test_networks_that_are_something_else_are_refused() -> None:
    with torch.device("meta"):
        grouped = ResNet(ResNetConfig(depth=50, input_shape=(3, 224, 224))).state_dict()
        deep = VGG(VGGConfig()).state_dict()
    grouped["layer1.0.conv2.weight"] = torch.zeros(64, 4, 3, 3)
    with pytest.raises(GraphError, match="without groups"):
        settle(resnet.FAMILY, grouped)
    deep.pop("features.40.weight")
    with pytest.raises(GraphError, match="a VGG-16 has 13 in stages of 2, 2, 3, 3, 3"):
        settle(vgg.FAMILY, deep)
    with pytest.raises(GraphError, match="not of a MobileNetV2"):
        settle(mobilenetv2.FAMILY, grouped)
    narrow = {**_mobilenet_state(), "features.5.conv.2.weight": torch.zeros(33, 1, 1, 1)}
    with pytest.raises(GraphError, match="other numbers of channels than any MobileNetV2"):
        settle(mobilenetv2.FAMILY, narrow)


def _mobilenet_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        return MobileNet(MobileNetConfig()).state_dict()


def test_a_padded_shortcut_is_option_a_of_the_paper() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)
    padded = resnet.PaddedShortcut(16, 32)(x)
    assert padded.shape == (2, 32, 4, 4)
    torch.testing.assert_close(padded[:, 8:24], x[:, :, ::2, ::2])
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


def test_weights_of_others_need_no_flags(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = ResNetConfig(depth=20, shortcut="padding", classes=4, input_shape=(3, 32, 32))
    net = ResNet(config).eval()
    state = rename(net.state_dict(), ("fc.", "linear."))
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 1}, tmp_path / "w.th")
    assert settle(resnet.FAMILY, strip_parallel(read_weights(tmp_path / "w.th"))) == config
    path = tmp_path / "theirs.npz"
    np.savez(path, **{key: value.numpy().astype(np.float16) for key, value in state.items()})
    net.load_state_dict({key: value.half().float() for key, value in net.state_dict().items()})
    said: list[str] = []
    run, options = RunFolder(root=tmp_path / "run"), ExportOptions(weights=str(path), every=8)
    model = export_model(run, options, report=said.append).model
    settings = model.spec.settings
    assert {name: settings[name] for name in ("depth", "shortcut", "classes", "input_shape", "weights")} == {
        "depth": 20, "shortcut": "padding", "classes": 4, "input_shape": "3,32,32", "weights": "theirs.npz",
    }  # fmt: skip
    assert any("ResNet-20" in line and "4 classes and input 3x32x32" in line for line in said)
    assert export_model(run, options).reused
    rows = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    expected = net(torch.from_numpy(rows)).detach().numpy()
    found = run_graph(model.path(model.spec.full), {"input": rows})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(rebuild_net(model)(torch.from_numpy(rows))[1].detach(), expected, atol=1e-5)


def test_an_npz_with_code_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array([{}], object))
    with pytest.raises(InputError, match=r"w\.npz cannot be read as weights"):
        read_weights(tmp_path / "w.npz")
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(strip_parallel(state)) == ["module.a", "b"]


@pytest.mark.real_data
def test_the_given_resnet_is_read_without_flags(tmp_path: Path) -> None:
    folder = os.environ.get("PAME_REAL_DATA")
    if not folder or not (Path(folder) / "cifar10" / "resnet56_jpeg.npz").is_file():
        pytest.skip("PAME_REAL_DATA names no folder with cifar10/resnet56_jpeg.npz")
    options = ExportOptions(weights=str(Path(folder) / "cifar10" / "resnet56_jpeg.npz"), every=9)
    spec = export_model(RunFolder(root=tmp_path / "run"), options).model.spec
    assert (spec.settings["depth"], spec.settings["shortcut"], spec.settings["input_shape"]) == (
        56, "padding", "3,32,32",
    )  # fmt: skip
