"""Multi-exit nets: a torch backbone with its exit heads, for end-to-end training and for the export of a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from artifacts import Cut, TensorSpec
from export.cuts.thinning import thin
from export.nets.family import INPUT, Backbone
from export.nets.heads import answer_features, build_head


class MultiExitNet(nn.Module):
    """A backbone and an exit head after some of its blocks.

    Shapes: inputs (B, ...); output (cut name -> (B, classes, ...) logits, final (B, classes, ...) logits).
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.cut_names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features, final = self.backbone.forward_with_features(*inputs)
        heads = zip(self.cut_names, self.heads, strict=True)
        return {name: answer_features(head, features, name) for name, head in heads}, final


def backbone_cuts(backbone: Backbone, inputs: Sequence[TensorSpec]) -> tuple[Cut, ...]:
    """Returns the cuts after the backbone's blocks, in order, with the shapes of their features."""
    was_training = backbone.training
    with torch.no_grad():
        features, _ = backbone.eval().forward_with_features(*example_rows(inputs))
    backbone.train(was_training)
    specs = {
        name: TensorSpec(name=name, dtype="float32", row_shape=tuple(value.shape[1:]))
        for name, value in features.items()
    }
    blocks = [name for name, _ in backbone.blocks()]
    carried = tuple(spec for name, spec in specs.items() if name not in blocks)
    return tuple(Cut(name=name, main=specs[name], carried=carried) for name in blocks)


def example_rows(inputs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Returns two rows of every input: zeros, and ones where they are integers, which a mask needs."""
    made = {True: torch.zeros, False: torch.ones}
    return tuple(
        made[spec.dtype.startswith("float")](2, *spec.row_shape, dtype=getattr(torch, spec.dtype)) for spec in inputs
    )


def attach_heads(
    backbone: Backbone, input_shape: tuple[int, ...], *, classes: int, kind: str, every: int = 1
) -> MultiExitNet:
    """Puts an untrained exit head after every ``every``-th block but the last of a network of images.

    Raises:
        UsageError: ``every`` leaves no candidate.
    """
    cuts = backbone_cuts(backbone, [TensorSpec(name=INPUT, dtype="float32", row_shape=input_shape)])
    chosen = thin(cuts[:-1], every)
    heads = {cut.name: build_head(cut, cuts[cuts.index(cut) + 1 :], classes=classes, kind=kind) for cut in chosen}
    return MultiExitNet(backbone, heads)
