"""Multi-exit nets: a torch backbone with its exit heads, for end-to-end training and for the export of a family."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from artifacts import Cut, TensorSpec
from export.cuts.thinning import thin
from export.nets.family import Backbone
from export.nets.heads import answer_features, build_head


class MultiExitNet(nn.Module):
    """A backbone and an exit head after some of its blocks.

    Shapes: input (B, ...) float32; output (cut name -> (B, classes, ...) logits, final (B, classes, ...) logits).
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.cut_names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features, final = self.backbone.forward_with_features(x)
        exits = zip(self.cut_names, self.heads, strict=True)
        return {name: answer_features(head, features, name) for name, head in exits}, final


def backbone_cuts(backbone: Backbone, input_shape: tuple[int, ...]) -> tuple[Cut, ...]:
    """Returns the cuts after the backbone's blocks, in order, with the shapes of their features."""
    was_training = backbone.training
    with torch.no_grad():
        features, _ = backbone.eval().forward_with_features(torch.zeros(2, *input_shape))
    backbone.train(was_training)
    return tuple(
        Cut(name=name, main=TensorSpec(name=name, dtype="float32", row_shape=tuple(features[name].shape[1:])))
        for name, _ in backbone.blocks()
    )


def attach_heads(
    backbone: Backbone, input_shape: tuple[int, ...], *, classes: int, kind: str, every: int = 1
) -> MultiExitNet:
    """Puts an untrained exit head after every ``every``-th block but the last.

    Raises:
        UsageError: ``every`` leaves no candidate.
    """
    cuts = backbone_cuts(backbone, input_shape)
    chosen = thin(cuts[:-1], every)
    heads = {cut.name: build_head(cut, cuts[cuts.index(cut) + 1 :], classes=classes, kind=kind) for cut in chosen}
    return MultiExitNet(backbone, heads)
