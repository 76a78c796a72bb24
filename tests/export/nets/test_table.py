"""Tests of the table of families: a family is one file and one line, and what is not there is said clearly."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from artifacts import MissingExtraError, RunFolder, SchemaError, UsageError, open_model
from export import add_heads, build_missing_heads, publish_net, rebuild_net
from export.cli import main
from export.nets import table
from export.nets.shipped_weights import read_recipe

SMALL_FAMILY = """
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.nets.family import Backbone, Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    layers: int = field(default=3, metadata={"help": "how many layers"})
    classes: int = field(default=4, metadata={"help": "number of classes"})
    input_shape: tuple[int, int, int] = (1, 6, 6)


class Net(Backbone):
    def __init__(self, options: Options) -> None:
        super().__init__()
        channels = options.input_shape[0]
        self.layers = nn.ModuleList(
            nn.Conv2d(channels if i == 0 else 5, 5, 3, padding=1) for i in range(options.layers)
        )
        self.fc = nn.Linear(5, options.classes)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"layers.{i}", layer) for i, layer in enumerate(self.layers))

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = {}
        for name, layer in self.blocks():
            x = torch.relu(layer(x))
            features[name] = x
        return features, self.fc(x.mean((2, 3)))


FAMILY = Family(name="small", config=Options, build=Net, title=lambda options: f"Small-{options.layers}")
"""


def test_a_new_family_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small_family.py").write_text(SMALL_FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(table.FAMILIES, "small", "small_family")
    run = RunFolder(root=tmp_path / "run")
    flags = ["--layers", "4", "--input-shape", "2,6,6", "--weights", "random", "--segments"]
    assert main(["--run", str(run.root), *flags, "small"]) == 0
    assert "exporting Small-4 (random weights)" in capsys.readouterr().err
    model = open_model(run.model, remedy="")
    assert [cut.name for cut in model.spec.cuts] == [f"layers.{i}" for i in range(4)]
    assert {name: model.spec.settings[name] for name in ("layers", "classes", "input_shape")} == {
        "layers": 4, "classes": 4, "input_shape": "2,6,6",
    }  # fmt: skip
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    net = rebuild_net(model)
    assert list(net(torch.zeros(1, 2, 6, 6))[0]) == ["layers.0", "layers.1", "layers.2"]
    assert list(publish_net(model, net, inputs={}).spec.heads) == ["layers.0", "layers.1", "layers.2"]
    with pytest.raises(SystemExit) as stopped:
        main(["small", "--help"])
    assert stopped.value.code == 0
    assert "how many layers (default: 3)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["small", "--depth", "20"])
    assert "unrecognized arguments: --depth 20" in capsys.readouterr().err
    sys.modules.pop("small_family")


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown family 'resnext'. Did you mean 'resnet'\? Known: .*resnet"):
        table.find_family("resnext")


def test_a_family_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare_family.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(table.FAMILIES, "bare", "bare_family")
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed.*pame\[train\]"):
        table.find_family("bare")


OLD_RECIPE = """
    {"family": "resnet", "depth": 20, "classes": 10, "input_shape": [1, 28, 14], "every": 2, "head": "simple",
     "mean": 0.25, "std": 0.5, "dataset": "d"}
"""


def test_a_recipe_of_release_0_1_0_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(textwrap.dedent(OLD_RECIPE))
    recipe = read_recipe(tmp_path)
    assert dict(recipe.options) == {"depth": 20, "classes": 10, "input_shape": "1,28,14"}
    pixels = recipe.preprocessing
    assert pixels is not None
    assert (pixels.height, pixels.width, pixels.channel_order) == (28, 14, "L")
    assert (pixels.mean, pixels.std) == ((0.25,), (0.5,))
    broken = json.loads(OLD_RECIPE)
    del broken["std"]
    (tmp_path / "recipe.json").write_text(json.dumps(broken))
    with pytest.raises(SchemaError, match=r"recipe\.json: not a recipe of release 0.1.0.*expected depth"):
        read_recipe(tmp_path)
