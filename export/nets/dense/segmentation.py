"""The ``segmentation`` family: one class per pixel, on MobileNetV2 or on a dilated ResNet with OCRNet's head.

On ``mobilenetv2`` every answer is made at a stride of 4 from features of all strides there are by then. On a ResNet the
features stay at a stride of 8, exits answer from them alone, and the final head is that of OCRNet (``ObjectContext``).
Answers have the size of the image: they are enlarged in the graph, to every second pixel, which stands for four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from artifacts import Cut, UsageError
from export.nets.dense.heads import FusedHead, MapsHead, ObjectContext, SkipHead, build_enlarging
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
from export.nets.table import HEADS

_FINEST = 4  # the stride of fused answers, before they are enlarged
_EXIT_WIDTH, _FINAL_WIDTH = 64, 64
_OBJECT_WIDTH, _OBJECT_KEY = 256, 128
_LEAST_WIDTH = 64
_DILATED = 8  # the stride of a dilated ResNet's features


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationConfig:
    """Which network.

    Attributes:
        trunk: ``mobilenetv2``, or ``resnet18``, ``34``, ``50``, ``101``, ``152``.
        classes: number of classes, void not among them.
        input_shape: (channels, height, width) of an image; height and width are multiples of 32.
    """

    trunk: str = field(default=MOBILENET, metadata={"help": "what makes the features: mobilenetv2, resnet18 ... 152"})
    classes: int = field(default=11, metadata={"help": "number of classes, void not among them"})
    input_shape: tuple[int, int, int] = (3, 192, 256)

    def __post_init__(self) -> None:
        check_trunk(self.trunk, self.input_shape)
        if not 2 <= self.classes <= 255:
            raise UsageError(f"--classes {self.classes}: expected 2 to 255, since a mask holds one byte per pixel")


class SegmentationNet(Backbone):
    """A trunk and its final head. Shapes: input (B, C, H, W) float32, output (B, classes, H, W) float32 logits."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.trunk = build_trunk(config.trunk, config.input_shape[0], dilated=True)
        self.enlarge: nn.Module = nn.Identity()
        if config.trunk == MOBILENET:
            self.answer: nn.Module = FusedHead(
                mobilenet_shapes("features.17", config.input_shape), answers=config.classes, width=_FINAL_WIDTH,
                scale=_FINEST, reads=tuple(SHARED),
            )  # fmt: skip
        else:
            channels = list(self.trunk.get_submodule("layer4").parameters())[-1].shape[0]
            _, height, width = config.input_shape
            self.enlarge = build_enlarging(height // _DILATED, width // _DILATED, _DILATED)
            self.answer = ObjectContext(channels, classes=config.classes, width=_OBJECT_WIDTH, key=_OBJECT_KEY)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the trunk's blocks, by torchvision's names."""
        return self.trunk.blocks()

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it; logits)."""
        features = self.trunk(x)
        last = [name for name, _ in self.blocks()][-1]
        if isinstance(self.answer, FusedHead):
            return features, self.answer(features[last], *(features[name] for name in self.answer.reads))
        return features, self.enlarge(self.answer(features[last]))

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state dict of this network for one of it, or of a classifier on the same trunk."""
        return adapt_to_trunk(self.state_dict(), state)


def mobilenet_shapes(block: str, input_shape: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns the shapes of MobileNetV2's features after a block, and of the shared ones before it."""
    widths = {6: 32, 8: 64, 10: 64, 13: 96, 17: 320}
    found = [(widths[int(block.removeprefix("features."))], stride_of(block, dilated=False))]
    found += [(SHARED[name], stride) for name, stride in zip(shared_before(block), (4, 8, 16), strict=False)]
    return [(channels, input_shape[1] // stride, input_shape[2] // stride) for channels, stride in found]


def build_exit(cut: Cut, _later: Sequence[Cut], *, classes: int, kind: str) -> nn.Module:
    """Builds the untrained exit head of a cut; the cuts behind it do not matter.

    Raises:
        UsageError: another kind of head than the only one there is.
    """
    check_kind("segmentation", kind)
    channels, height, width = cut.main.row_shape
    if cut.name.startswith("features."):
        stride = stride_of(cut.name, dilated=False)
        shapes = mobilenet_shapes(cut.name, (0, height * stride, width * stride))
        return SkipHead(
            shapes, answers=classes, width=_EXIT_WIDTH, scale=_FINEST, reads=shared_before(cut.name)
        )  # fmt: skip
    enlarge = build_enlarging(height, width, stride_of(cut.name, dilated=True))
    return MapsHead(channels, answers=classes, width=max(_LEAST_WIDTH, channels // 4), enlarge=enlarge)


def check_kind(family: str, kind: str) -> None:
    """Raises ``UsageError`` for a kind of head that dense networks do not have."""
    if kind != HEADS[0]:
        raise UsageError(f"--head {kind}: the exit heads of the family {family} are of one kind; leave the flag out")


FAMILY = Family(
    name="segmentation",
    config=SegmentationConfig,
    build=SegmentationNet,
    title=lambda config: f"a segmentation network on {config.trunk}",
    build_head=build_exit,
    task="segmentation",
    answers="classes",
)
