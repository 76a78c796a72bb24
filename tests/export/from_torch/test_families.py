"""Tests of families: options, weights, an exported net, and what later steps do with its model folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from artifacts import GraphError, InputError, Model, Preprocessing, RunFolder, UsageError, new_artifact, open_model
from engines import run_graph
from export import (
    ExportOptions,
    Recipe,
    ResNet,
    ResNetConfig,
    add_heads,
    attach_heads,
    build_missing_heads,
    ensure_model,
    export_model,
    export_torch,
    merge_stage,
    publish_net,
    read_weights,
    rebuild_net,
    save_weights,
    write_recipe,
)
from export.nets import resnet, shipped_weights
from tests.export.export_graphs import TINY, TINY_NET

PIXELS = Preprocessing(height=12, width=12, channel_order="L", mean=(0.25,), std=(0.5,))
ROWS = np.random.default_rng(3).standard_normal((4, 1, 12, 12), dtype=np.float32)


def test_the_parts_of_a_family(tiny_run: RunFolder) -> None:
    model = open_model(tiny_run.model, remedy="")
    spec = model.spec
    assert [cut.name for cut in spec.cuts] == ["layer1.2", "layer2.2", "layer3.2"]
    assert [cut.main.row_shape for cut in spec.cuts] == [(16, 12, 12), (32, 6, 6), (64, 3, 3)]
    assert [part.name for part in spec.segments] == ["segment_00", "segment_01", "segment_02"]
    assert spec.full.outputs[-1].name == spec.full.confidence == "confidence"
    assert spec.full.answers == ("logits",)
    assert spec.candidates == ()
    assert spec.settings["every"] == 3


def test_the_export_is_reused_until_something_changes(tiny_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_model(tiny_run.model, remedy="").digest
    said: list[str] = []
    result = export_model(tiny_run, TINY, report=said.append)
    assert result.reused
    assert said == [f"{tiny_run.model} is up to date"]
    assert capsys.readouterr() == ("", ""), "only command lines print"
    assert ensure_model(tiny_run).digest == before


def test_heads_are_added_and_the_net_rebuilt_with_them(tiny_run: RunFolder, tiny_with_heads: Model) -> None:
    spec = tiny_with_heads.spec
    assert [cut.name for cut in spec.candidates] == ["layer1.2", "layer2.2"]
    assert build_missing_heads(tiny_with_heads) == {}
    assert tiny_with_heads.artifact.manifest.inputs == {"training": "none"}
    net = rebuild_net(tiny_with_heads)
    exits, final = net(torch.from_numpy(ROWS))
    full = run_graph(tiny_with_heads.path(spec.full), {"input": ROWS})
    np.testing.assert_allclose(full["logits"], final.detach().numpy(), atol=1e-5)
    for cut in spec.candidates:
        features = net.backbone.forward_with_features(torch.from_numpy(ROWS))[0][cut.name].detach().numpy()
        found = run_graph(tiny_with_heads.path(spec.heads[cut.name]), {cut.name: features})
        np.testing.assert_allclose(found[f"{cut.name}/logits"], exits[cut.name].detach().numpy(), atol=1e-5)
        sure = torch.softmax(exits[cut.name], 1).amax(1).detach().numpy()
        np.testing.assert_allclose(found[f"{cut.name}/confidence"], sure, atol=1e-5)
    run = RunFolder(root=tiny_with_heads.artifact.folder.parent)
    assert export_model(run, TINY).reused, "added heads must not make the export stale"


def test_a_stage_equals_its_parts(tiny_with_heads: Model, tmp_path: Path) -> None:
    spec = tiny_with_heads.spec
    tensors = {"input": ROWS}
    for part in (*spec.segments, *spec.heads.values(), spec.final_head):
        assert part is not None
        inputs = {item.name: tensors[item.name] for item in part.inputs}
        tensors.update(run_graph(tiny_with_heads.path(part), inputs))
    for after, until in [
        (None, "layer1.2"),
        ("layer1.2", "layer2.2"),
        (None, "layer2.2"),
        ("layer2.2", None),
        (None, None),
    ]:
        stage = merge_stage(tiny_with_heads, after=after, until=until, path=tmp_path / "stage.onnx")
        assert [item.name for item in stage.inputs] == [after or "input"]
        found = run_graph(tmp_path / stage.file, {after or "input": tensors[after or "input"]})
        assert list(found) == [item.name for item in stage.outputs]
        assert stage.confidence in found
        for name, array in found.items():
            np.testing.assert_array_equal(array, tensors[name])


def test_stages_that_cannot_be(tiny_run: RunFolder, tiny_with_heads: Model, tmp_path: Path) -> None:
    path = tmp_path / "stage.onnx"
    with pytest.raises(UsageError, match="does not lie behind"):
        merge_stage(tiny_with_heads, after="layer2.2", until="layer1.2", path=path)
    with pytest.raises(UsageError, match="Did you mean 'layer1.2'"):
        merge_stage(tiny_with_heads, after="layer1.1", until=None, path=path)
    with pytest.raises(GraphError, match="no trained exit head"):
        merge_stage(open_model(tiny_run.model, remedy=""), after=None, until="layer1.2", path=path)
    assert not path.exists()


def test_heads_that_do_not_fit_are_refused(tiny_run: RunFolder) -> None:
    model = open_model(tiny_run.model, remedy="")
    with pytest.raises(GraphError, match="the last cut"):
        add_heads(model, {"layer3.2": nn.Identity()}, inputs={})
    with pytest.raises(UsageError, match="unknown cut"):
        add_heads(model, {"nowhere": nn.Identity()}, inputs={})
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(16 * 12 * 12, 7))
    with pytest.raises(GraphError, match="the same classes"):
        add_heads(model, {"layer1.2": wrong}, inputs={})


def test_a_trained_net_is_published_again(tiny_with_heads: Model, tmp_path: Path) -> None:
    run = RunFolder(root=tmp_path / "run")
    shutil.copytree(tiny_with_heads.artifact.folder, run.model)
    model = open_model(run.model, remedy="")
    net = rebuild_net(model)
    with torch.no_grad():
        net.backbone.fc.bias += 1  # type: ignore[operator, union-attr]
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    published = publish_net(model, net, inputs={"training": "joint"}, trained=("layer2.2",))
    assert list(published.spec.heads) == ["layer2.2"]
    assert published.artifact.manifest.inputs["training"] == "joint"
    before = run_graph(tiny_with_heads.path(tiny_with_heads.spec.full), {"input": ROWS})["logits"]
    after = run_graph(published.path(published.spec.full), {"input": ROWS})["logits"]
    np.testing.assert_allclose(after, before + 1, atol=1e-5)
    assert list(build_missing_heads(published)) == ["layer1.2"]
    assert export_model(run, TINY).reused


def shipped(root: Path, *, every: int = 3) -> Path:
    folder = root / "resnet20-test"
    torch.manual_seed(5)
    config = ResNetConfig(depth=20, input_shape=(1, 12, 12))
    net = attach_heads(ResNet(config), config.input_shape, classes=10, kind="simple", every=every)
    recipe = Recipe(
        family="resnet", options={"depth": 20, "classes": 10, "input_shape": "1,12,12"}, every=every, head="simple",
        preprocessing=PIXELS, dataset="none",
    )  # fmt: skip
    with new_artifact(folder, kind="weights") as staging:
        save_weights(staging / "weights.safetensors", net)
        write_recipe(staging, recipe)
    return folder


def test_shipped_weights_bring_their_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shipped(tmp_path)
    monkeypatch.setattr(shipped_weights, "PRETRAINED_ROOT", tmp_path)
    assert shipped_weights.pretrained_folder("resnet20-test") == folder
    assert shipped_weights.pretrained_folder("other") is None
    run = RunFolder(root=tmp_path / "run")
    model = ensure_model(run, ExportOptions(net=TINY_NET))
    assert list(model.spec.heads) == ["layer1.2", "layer2.2"]
    assert {name: model.spec.settings[name] for name in ("every", "head")} == {"every": 3, "head": "simple"}
    assert model.spec.preprocessing == model.spec.stated_preprocessing() == PIXELS
    # no options given: what ships for the family
    assert ensure_model(RunFolder(root=tmp_path / "any"), ExportOptions()).spec.settings["depth"] == 20
    with pytest.raises(UsageError, match="--weights FILE, or start with --weights random"):
        export_model(run, ExportOptions(net=dataclasses.replace(TINY_NET, depth=32)))


@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_keys_are_torchvisions(depth: int) -> None:
    state = ResNet(ResNetConfig(depth=depth, classes=1000, input_shape=(3, 224, 224))).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    known = {
        18: {
            "layer1.0.conv1.weight": (64, 64, 3, 3), "layer2.0.conv1.weight": (128, 64, 3, 3),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.running_var": (512,),
            "fc.weight": (1000, 512),
        },
        50: {
            "layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.conv3.weight": (256, 64, 1, 1),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1), "layer2.0.conv2.weight": (128, 128, 3, 3),
            "layer3.5.bn3.bias": (1024,), "layer4.2.conv3.weight": (2048, 512, 1, 1), "fc.weight": (1000, 2048),
        },
    }[depth]  # fmt: skip
    stem = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "bn1.num_batches_tracked": (), "fc.bias": (1000,)}
    assert {name: shapes[name] for name in {**known, **stem}} == {**known, **stem}
    assert len(state) == {18: 122, 50: 320}[depth]
    parameters = sum(np.prod(shape) for name, shape in shapes.items() if "running" not in name and "num_" not in name)
    assert parameters == {18: 11_689_512, 50: 25_557_032}[depth]


def test_weights_files(tmp_path: Path) -> None:
    net = ResNet(ResNetConfig(depth=20, input_shape=(1, 12, 12)))
    torch.save(net.state_dict(), tmp_path / "plain.pth")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for name in ("plain.pth", "nested.pt", "w.safetensors"):
        assert set(read_weights(tmp_path / name)) == set(net.state_dict())
    torch.save(net, tmp_path / "code.pth")
    with pytest.raises(InputError, match="without running code"):
        read_weights(tmp_path / "code.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut\.safetensors cannot be read"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=r"unknown kind of weights file '\.h5'"):
        read_weights(tmp_path / "w.h5")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = ResNet(ResNetConfig(depth=20)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    run = RunFolder(root=tmp_path / "run")
    deeper = ExportOptions(net=ResNetConfig(depth=44), weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(UsageError, match=r"--depth 44: .*w\.safetensors is of a network with depth 20"):
        export_model(run, deeper)
    coloured = ExportOptions(net=ResNetConfig(input_shape=(3, 32, 32)), weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(UsageError, match="--input-shape 3,32,32: .* images of 1 channels"):
        export_model(run, coloured)
    del state["layer2.1.bn1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(GraphError, match=r"does not fit this network.*layer2\.1\.bn1\.weight.*Check the options"):
        export_model(run, dataclasses.replace(TINY, weights=str(tmp_path / "w.safetensors")))
    save_file({"blocks.0.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(GraphError, match="not of a ResNet: they begin with blocks.0.weight"):
        export_model(run, dataclasses.replace(TINY, weights=str(tmp_path / "w.safetensors")))
    assert not run.model.exists()


def test_stored_weights_hold_the_trained_heads_only(tiny_run: RunFolder, tiny_with_heads: Model) -> None:
    bare = load_file(tiny_run.model / "weights.safetensors")
    with_heads = load_file(tiny_with_heads.artifact.path("weights.safetensors"))
    assert not [key for key in bare if key.startswith("exits.")]
    assert {key.split(".fc.")[0] for key in with_heads if key.endswith("fc.weight") and key.startswith("exits.")} == {
        "exits.layer1.2", "exits.layer2.2",
    }  # fmt: skip


class MaskedEncoder(nn.Module):
    """Two transformer layers over token embeddings with an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.query, self.key, self.value = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.out = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        bias = ((1 - mask) * -1e4)[:, None, :]
        for query, key, value, norm in zip(self.query, self.key, self.value, self.norms, strict=True):
            scores = query(hidden) @ key(hidden).transpose(1, 2) / 8**0.5 + bias
            hidden = norm(hidden + torch.softmax(scores, -1) @ value(hidden))
        return self.out(hidden[:, 0])


def test_any_torch_module_is_exported_with_its_mask_carried(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MaskedEncoder().train()
    run = RunFolder(root=tmp_path / "encoder")
    examples = (torch.ones(2, 6, dtype=torch.int64), torch.ones(2, 6))
    result = export_torch(run, module, examples, input_names=["ids", "mask"], output_names=["logits"])
    assert module.training
    spec = result.model.spec
    carried = [tuple(tensor.row_shape for tensor in cut.carried) for cut in spec.cuts]
    assert (1, 6) in carried[0], "the additive mask goes past the first layer"
    assert spec.cuts[0].main.row_shape == (6, 8)
    assert spec.task == "classification"
    assert result.parity.worst < 1e-6
    assert result.parity.source == "torch"


def test_a_module_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 4) @ torch.ones(4, 4)

    with pytest.raises(GraphError, match="torch cannot export Fixed|torch fixed the batch"):
        export_torch(RunFolder(root=tmp_path / "run"), Fixed(), (torch.ones(2, 4),))
    with pytest.raises(GraphError, match="at least 2 rows"):
        export_torch(RunFolder(root=tmp_path / "run"), nn.Linear(4, 4), (torch.ones(1, 4),))


def test_what_skips_past_a_cut_is_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Skipping(ResNet):
        def forward_with_features(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            features, logits = super().forward_with_features(x)
            return features, logits + features["layer1.2"].mean((2, 3))[:, :10]

    monkeypatch.setattr(resnet, "FAMILY", dataclasses.replace(resnet.FAMILY, build=Skipping))
    model = export_model(RunFolder(root=tmp_path / "run"), dataclasses.replace(TINY, every=4)).model
    carried = [tensor.row_shape[0] for cut in model.spec.cuts for tensor in cut.carried]
    assert carried == [16] * len(model.spec.cuts)
