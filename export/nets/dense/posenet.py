"""The ``posenet`` family: one heat map per joint at a quarter of the image's size.

On a ResNet it is PoseResNet (Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018): three
transposed convolutions behind the last features, and exits with as many as are needed there. On ``mobilenetv2`` every
answer is made at a stride of 4 from features of all strides there are by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from artifacts import Cut, UsageError
from export.nets.dense.heads import FusedHead, MapsHead, SkipHead
from export.nets.dense.segmentation import check_kind, mobilenet_shapes
from export.nets.dense.trunks import (
    MOBILENET,
    SHARED,
    adapt_to_trunk,
    build_trunk,
    check_trunk,
    shared_before,
    stride_of,
)
from export.nets.family import Backbone, Family

_STRIDE = 4  # of the heat maps
_EXIT_WIDTH, _FINAL_WIDTH = 64, 96
_DECONVOLUTIONS, _DECONVOLUTION_WIDTH = 3, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseConfig:
    """Which network.

    Attributes:
        trunk: ``mobilenetv2``, or ``resnet18``, ``34``, ``50``, ``101``, ``152``.
        classes: number of joints.
        input_shape: (channels, height, width) of an image; height and width are multiples of 32.
    """

    trunk: str = field(default=MOBILENET, metadata={"help": "what makes the features: mobilenetv2, resnet18 ... 152"})
    classes: int = field(default=14, metadata={"help": "number of joints"})
    input_shape: tuple[int, int, int] = (3, 96, 96)

    def __post_init__(self) -> None:
        check_trunk(self.trunk, self.input_shape)
        if self.classes < 1:
            raise UsageError(f"--classes {self.classes}: expected at least 1 joint")


class PoseNet(Backbone):
    """A trunk and its final head. Shapes: input (B, C, H, W) float32, output (B, joints, H / 4, W / 4) float32."""

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.trunk = build_trunk(config.trunk, config.input_shape[0], dilated=False)
        if config.trunk == MOBILENET:
            self.answer: nn.Module = FusedHead(
                mobilenet_shapes("features.17", config.input_shape), answers=config.classes, width=_FINAL_WIDTH,
                reads=tuple(SHARED),
            )  # fmt: skip
        else:
            channels = list(self.trunk.get_submodule("layer4").parameters())[-1].shape[0]
            self.answer = MapsHead(
                channels, answers=config.classes, width=_DECONVOLUTION_WIDTH, doublings=_DECONVOLUTIONS
            )

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the trunk's blocks, by torchvision's names."""
        return self.trunk.blocks()

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it; heat maps, as logits of a softmax over all places)."""
        features = self.trunk(x)
        last = [name for name, _ in self.blocks()][-1]
        others = self.answer.reads if isinstance(self.answer, FusedHead) else ()
        return features, self.answer(features[last], *(features[name] for name in others))

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state dict of this network for one of it, or of a classifier on the same trunk."""
        return adapt_to_trunk(self.state_dict(), state)


def build_exit(cut: Cut, _later: Sequence[Cut], *, classes: int, kind: str) -> nn.Module:
    """Builds the untrained exit head of a cut; the cuts behind it do not matter.

    Raises:
        UsageError: another kind of head than the only one there is.
    """
    check_kind("posenet", kind)
    channels, height, width = cut.main.row_shape
    stride = stride_of(cut.name, dilated=False)
    if cut.name.startswith("features."):
        shapes = mobilenet_shapes(cut.name, (0, height * stride, width * stride))
        return SkipHead(shapes, answers=classes, width=_EXIT_WIDTH, reads=shared_before(cut.name))
    doublings = (stride // _STRIDE).bit_length() - 1
    return MapsHead(channels, answers=classes, width=_EXIT_WIDTH, doublings=doublings)


FAMILY = Family(
    name="posenet",
    config=PoseConfig,
    build=PoseNet,
    title=lambda config: f"a pose network on {config.trunk}",
    build_head=build_exit,
    task="pose",
)
