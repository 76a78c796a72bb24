"""Tests of the weights that ship: small, sound, and taken where a family's name is all that is said."""

from __future__ import annotations

import pytest
import torch

from artifacts import open_artifact
from export.nets.shipped_weights import PRETRAINED_ROOT, RECIPE_JSON, WEIGHTS_FILE, find_pretrained, read_recipe
from export.nets.table import find_family
from export.nets.weights import read_weights, split_heads

SHIPPED = sorted(folder.name for folder in PRETRAINED_ROOT.iterdir() if (folder / RECIPE_JSON).is_file())


def test_a_resnet_and_a_vgg_ship() -> None:
    assert SHIPPED == ["resnet32-fashion-mnist", "vgg16-fashion-mnist"]
    assert find_pretrained("vgg16", None) == PRETRAINED_ROOT / "vgg16-fashion-mnist"
    assert find_pretrained("mobilenetv2", None) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_fit_their_family(name: str) -> None:
    artifact = open_artifact(PRETRAINED_ROOT / name, kind="weights", remedy="")
    file, recipe = artifact.path(WEIGHTS_FILE), read_recipe(PRETRAINED_ROOT / name)
    assert file.stat().st_size <= 4 << 20
    family = find_family(recipe.family)
    config = family.read(recipe.options)
    backbone, heads = split_heads(read_weights(file))
    with torch.device("meta"):
        expected = {key: value.shape for key, value in family.build(config).state_dict().items()}
    assert {key: value.shape for key, value in backbone.items()} == expected
    assert heads
    assert family.fit_state is not None
    assert {name: getattr(config, name) for name in family.fit_state(backbone).options} == dict(
        family.fit_state(backbone).options
    )  # fmt: skip
    assert recipe.test_metric["final"] > 0.9
