"""Dense families: what exits read, the shapes of answers; a classifier's weights start their trunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from artifacts import Cut, GraphError, TensorSpec, UsageError
from export.nets.dense import posenet, segmentation
from export.nets.dense.heads import Enlarge, SkipHead
from export.nets.dense.trunks import shared_before, stride_of
from export.nets.family import Family, image_inputs
from export.nets.heads import features_read
from export.nets.mobilenet import build_features
from export.nets.multi_exit import MultiExitNet, backbone_cuts
from export.nets.resnet import ResNet, ResNetConfig
from export.nets.weights import load_weights

SIZE = (3, 32, 64)


def build(family: Family, trunk: str) -> MultiExitNet:
    torch.manual_seed(0)
    backbone = family.build(family.config(trunk=trunk, classes=5, input_shape=SIZE))
    cuts = backbone_cuts(backbone, image_inputs(family.config(input_shape=SIZE)))
    heads = {cut.name: family.build_head(cut, (), classes=5, kind="pooled") for cut in cuts[:-1]}
    return MultiExitNet(backbone, heads).eval()


@pytest.mark.parametrize("trunk", ["mobilenetv2", "resnet18", "resnet50"])
@pytest.mark.parametrize(("family", "answer"), [(segmentation.FAMILY, (5, 32, 64)), (posenet.FAMILY, (5, 8, 16))])
def test_every_exit_answers_like_the_final_head(family: Family, trunk: str, answer: tuple[int, ...]) -> None:
    net = build(family, trunk)
    with torch.inference_mode():
        exits, final = net(torch.rand(2, *SIZE))

    assert {tuple(found.shape) for found in (*exits.values(), final)} == {(2, *answer)}
    assert len(exits) == len([*net.backbone.blocks()]) - 1


def test_exits_read_what_is_there_by_then() -> None:
    net = build(segmentation.FAMILY, "mobilenetv2")
    read = {name: features_read(head) for name, head in zip(net.cut_names, net.heads, strict=True)}

    assert read == {
        "features.6": ("features.3",), "features.8": ("features.3", "features.6"),
        "features.10": ("features.3", "features.6"), "features.13": ("features.3", "features.6"),
    }  # fmt: skip
    assert shared_before("layer3.0") == ()
    assert [stride_of(name, dilated=True) for name in ("layer1.0", "layer2.1", "layer4.0")] == [4, 8, 8]


@pytest.mark.parametrize("family", [segmentation.FAMILY, posenet.FAMILY])
def test_weights_of_a_classifier_start_the_trunk(family: Family) -> None:
    whole = build_features().state_dict()
    drawn = {f"features.{key}": value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    drawn |= {"classifier.1.weight": torch.zeros(9, 1280), "classifier.1.bias": torch.zeros(9)}
    net = build(family, "mobilenetv2")
    backbone = net.backbone
    own = {key: value.clone() for key, value in backbone.state_dict().items()}

    assert load_weights(net, drawn, where="mobilenet_v2.pth") == ()

    state = backbone.state_dict()
    assert torch.equal(state["trunk.features.9.conv.2.weight"], drawn["features.9.conv.2.weight"])
    assert all(torch.equal(state[key], own[key]) for key in own if not key.startswith("trunk."))
    assert backbone.adapt_state(state).keys() == state.keys()
    with pytest.raises(GraphError, match="neither of this network nor of a classifier"):
        backbone.adapt_state(ResNet(ResNetConfig(depth=18, input_shape=SIZE)).state_dict())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_answers_are_enlarged_to_every_second_pixel(factor: int) -> None:
    answers = torch.rand(2, 3, 5, 7)
    half = nn.functional.interpolate(answers, scale_factor=factor / 2, mode="bilinear")

    found = Enlarge(5, 7, factor)(answers)

    torch.testing.assert_close(found, half.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_an_exit_reads_the_finest_features_as_they_are() -> None:
    torch.manual_seed(0)
    head = SkipHead(((8, 2, 4), (6, 8, 16), (7, 4, 8)), answers=3, width=16, reads=("finest", "further")).eval()
    features = [torch.rand(2, *shape) for shape in head.shapes]
    moved = [features[0], features[1] + 1, features[2]]

    with torch.inference_mode():
        apart = head(*moved) - head(*features)
        packed = head.answer(head.reduce(*features))

    torch.testing.assert_close(apart, head.skip.weight.sum(dim=1).view(1, 3, 1, 1).expand(2, 3, 8, 16))
    torch.testing.assert_close(packed, head(*features))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match=r"unknown trunk \(--trunk\) 'resnet19'"):
        segmentation.SegmentationConfig(trunk="resnet19")
    with pytest.raises(UsageError, match="multiples of 32"):
        posenet.PoseConfig(input_shape=(3, 100, 96))
    with pytest.raises(UsageError, match="one byte per pixel"):
        segmentation.SegmentationConfig(classes=256)
    with pytest.raises(UsageError, match="leave the flag out"):
        cut = Cut(name="layer1.0", main=TensorSpec(name="layer1.0", dtype="float32", row_shape=(64, 8, 16)))
        segmentation.build_exit(cut, (), classes=5, kind="simple")
