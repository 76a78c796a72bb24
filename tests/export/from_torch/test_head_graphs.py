"""Head graphs: what is written node by node answers as the torch module does, with statistics of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from artifacts import Cut, TensorSpec
from export.from_torch.head_graphs import write_head
from export.graphs.probing import open_graph
from export.nets.heads import AnsweringHead, ChannelsFirst, TokenHead, answer_reduced, build_ladder, reduce_features

ANSWER = TensorSpec(name="answer", dtype="float32", row_shape=(3,))


def cut_of(*shape: int) -> Cut:
    return Cut(name="here", main=TensorSpec(name="here", dtype="float32", row_shape=shape))


def wake(module: nn.Module) -> nn.Module:
    """Gives batch normalisations statistics and weights that are not those of the start."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.running_mean, part.weight.data, part.bias.data):
                value.copy_(torch.randn_like(value))
            part.running_var.copy_(torch.rand_like(part.running_var) + 0.5)
    return module.eval()


LADDER = build_ladder(cut_of(8, 12, 12), [cut_of(16, 6, 6)], classes=3, kind="pooled")
HEADS = {
    **{f"rung {rung}": (head, (8, 12, 12)) for rung, head in enumerate(LADDER)},
    **{
        kind: (build_ladder(cut_of(8, 12, 12), [cut_of(16, 6, 6)], classes=3, kind=kind)[0], (8, 12, 12))
        for kind in ("complex", "simple")
    },
    "channels last": (nn.Sequential(ChannelsFirst(), LADDER[1]), (12, 12, 8)),
    "vector": (nn.Linear(5, 3), (5,)),
    "tokens": (TokenHead(6, 3), (4, 6)),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_written_head_answers_as_its_module(name: str, probabilities: bool) -> None:
    head, shape = HEADS[name]
    module = wake(AnsweringHead(head, probabilities=probabilities))
    loaded = write_head(module, cut_of(*shape), ANSWER)
    assert loaded is not None
    rows = np.random.default_rng(2).standard_normal((5, *shape)).astype(np.float32)
    with open_graph(loaded.model) as runner:
        found = runner.run({"here": rows})["answer"]
    with torch.no_grad():
        expected = module(torch.from_numpy(rows)).numpy()
        halves = answer_reduced(head, reduce_features(head, torch.from_numpy(rows)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    logits = torch.softmax(halves, -1) if probabilities else halves
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_ladder_descends() -> None:
    sizes = [sum(parameter.numel() for parameter in head.parameters()) for head in LADDER]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 5
    reduced = [reduce_features(head, torch.zeros(2, 8, 12, 12)).numel() for head in LADDER]
    assert reduced == sorted(reduced, reverse=True), "and so does what frozen training keeps"


def test_a_head_of_another_make_is_left_to_torch() -> None:
    for other in (nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), nn.Linear(5, 3, bias=False)):
        assert write_head(AnsweringHead(other).eval(), cut_of(2, 4, 4), ANSWER) is None
