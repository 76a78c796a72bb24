"""Every family's graphs against torch: the whole network and its parts, at batch 1, 3 and 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import RunFolder
from engines import run_graph
from export import ExportOptions, ResNetConfig, add_heads, build_missing_heads, export_model, rebuild_net
from export.nets.dense.posenet import PoseConfig
from export.nets.dense.segmentation import SegmentationConfig
from export.nets.mobilenetv2 import MobileNetConfig
from export.nets.vgg import VGGConfig

NETS = {
    "resnet": (ResNetConfig(depth=20, shortcut="padding", input_shape=(3, 12, 12)), 4),
    "vgg16": (VGGConfig(width=4, input_shape=(1, 28, 28)), 5),
    "mobilenetv2": (MobileNetConfig(width=10, style="cifar", classes=5, input_shape=(3, 16, 16)), 8),
    "segmentation": (SegmentationConfig(classes=3, input_shape=(3, 32, 64)), 4),
    "segmentation resnet18": (SegmentationConfig(trunk="resnet18", classes=3, input_shape=(3, 32, 32)), 7),
    "posenet": (PoseConfig(classes=2, input_shape=(3, 32, 32)), 4),
    "posenet resnet18": (PoseConfig(trunk="resnet18", classes=2, input_shape=(3, 32, 32)), 7),
}
SLOW = ("segmentation", "segmentation resnet18", "posenet")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.soak if name in SLOW else ()) for name in NETS])
def test_a_familys_graphs_answer_as_torch_does(name: str, tmp_path: Path) -> None:
    net, every = NETS[name]
    family = name.partition(" ")[0]
    answers = "logits" if family == "segmentation" else None
    options = ExportOptions(source=family, net=net, weights="random", every=every, answers=answers)
    model = export_model(RunFolder(root=tmp_path / "run"), options).model
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    spec, torch_net = model.spec, rebuild_net(model)
    for count in (1, 3, 32):
        rows = np.random.default_rng(count).standard_normal((count, *net.input_shape), dtype=np.float32)
        exits, final = torch_net(torch.from_numpy(rows))
        expected: dict[str, Any] = {"logits": final, **{f"{cut}/logits": answer for cut, answer in exits.items()}}
        tensors = {"input": rows}
        assert spec.final_head is not None
        for part in (*spec.segments, *spec.heads.values(), spec.final_head):
            tensors.update(run_graph(model.path(part), {item.name: tensors[item.name] for item in part.inputs}))
        whole = run_graph(model.path(spec.full), {"input": rows})["logits"]
        np.testing.assert_allclose(whole, final.detach().numpy(), atol=2e-5, rtol=2e-4)
        for tensor, answer in expected.items():
            np.testing.assert_allclose(tensors[tensor], answer.detach().numpy(), atol=2e-5, rtol=2e-4)
    assert len(spec.heads) == len(spec.cuts) - 1
