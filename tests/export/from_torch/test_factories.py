"""``torch:package.module:factory``: exported with its weights, reused, and every wrong thing named with its fix."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from artifacts import InputError, RunFolder, UsageError, recorded_command
from engines import run_graph
from export import ExportOptions, export_model
from export.cli import main, make_parser, read_options
from export.from_torch.factories import load_state, make_module
from tests.export.from_torch import users_nets

HERE = "torch:tests.export.from_torch.users_nets"
SHAPES = {"": users_nets.SHAPE}


def write_weights(folder: Path, *, seed: int = 5, width: int = 6) -> dict[str, torch.Tensor]:
    """Writes the same weights in every form in which users have them."""
    torch.manual_seed(seed)
    state = dict(users_nets.Net(width).state_dict())
    torch.save(state, folder / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "trainer.pt")
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}}, folder / "other.pt")
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "parallel.pth")
    save_file(state, folder / "plain.safetensors")
    return state


@pytest.mark.slow
def test_a_factory_is_exported_with_its_weights_and_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_weights(tmp_path)
    run, weights = RunFolder(root=tmp_path / "run"), str(tmp_path / "plain.safetensors")
    words = [f"{HERE}:tiny", "--segments", "--weights", weights, "--input-shape", "3,8,8", "--run", str(run.root)]
    assert main(words) == 0
    result = export_model(run, ExportOptions(source=f"{HERE}:tiny", weights=weights, input_shapes=SHAPES))
    assert result.reused
    assert len(result.model.spec.cuts) >= 2
    net = users_nets.Net().eval()
    net.load_state_dict(state)
    rows = torch.randn(4, *users_nets.SHAPE)
    found = run_graph(result.model.path(result.model.spec.full), {"input": rows.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found["output"], net(rows).numpy(), atol=1e-5)
    command = recorded_command(run.model)
    assert command is not None
    assert main(shlex.split(command)[3:]) == 0, "the recorded command does the same"
    assert "is up to date" in capsys.readouterr().err
    again = read_options(make_parser().parse_args(words), None)
    assert read_options(make_parser().parse_args(shlex.split(again.command(run))[3:]), None) == again


@pytest.mark.parametrize("name", ["plain.pth", "trainer.pt", "other.pt", "parallel.pth", "plain.safetensors"])
def test_weights_in_every_form_are_the_same_weights(name: str, tmp_path: Path) -> None:
    state, net, said = write_weights(tmp_path), users_nets.Net(), []
    load_state(net, tmp_path / name, said.append)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert any("'module.' is left out" in line for line in said) is (name == "parallel.pth")


@pytest.mark.slow
def test_a_module_is_taken_as_it_is_in_evaluation_mode_and_float32(tmp_path: Path) -> None:
    said: list[str] = []
    options = ExportOptions(source=f"{HERE}:half", input_shapes=SHAPES)
    model = export_model(RunFolder(root=tmp_path / "run"), options, report=said.append).model
    assert any("keeps the weights that its factory gives it" in line for line in said)
    assert any("torch.float16" in line for line in said)
    assert model.spec.full.inputs[0].dtype == "float32"
    assert make_module(f"{HERE}:made") is users_nets.made
    assert isinstance(make_module(f"{HERE}:Net"), users_nets.Net)


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_nets.py").write_text("from torch import nn\ndef net(): return nn.Linear(2, 2)\n")
    (tmp_path / "my_other_nets.py").write_text("import absent_package_of_nobody\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert isinstance(make_module("torch:my_own_nets:net"), torch.nn.Linear)
    with pytest.raises(UsageError, match="my_other_nets needs 'absent_package_of_nobody', which is not installed"):
        make_module("torch:my_other_nets:net")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torch:tiny", "expected torch:package.module:factory"),
        ("torch:a b:tiny", "expected torch:package.module:factory"),
        ("torch:absent_nets_of_nobody:tiny", "there is no module 'absent_nets_of_nobody', neither in .* PYTHONPATH"),
        ("torch:tests.absent.nets:tiny", "there is no module 'tests.absent'"),
        (f"{HERE}:tine", "Did you mean 'tiny'"),
        (f"{HERE}:NUMBER", "is int; expected what makes a torch module"),
        (f"{HERE}:number", "made int; expected a torch.nn.Module"),
        (f"{HERE}:sized", r"needs the arguments width, depth.*def mine\(\): return sized\(width=..., depth=...\)"),
        (f"{HERE}:broken", "failed when it was called: KeyError: 'no such file of settings'"),
    ],
)
def test_what_makes_no_module_is_named(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_module(source)


@pytest.mark.parametrize(
    ("factory", "shapes", "kind", "message"),
    [
        ("tiny", {}, UsageError, "--input-shape 3,224,224"),
        ("tiny", {"": (1, 8, 8)}, UsageError, r"does not run on \(2, 1, 8, 8\); look at --input-shape"),
        ("tiny", {"": (3, 8, 8), "b": (2,)}, UsageError, "every one needs a name"),
        ("Noisy", SHAPES, InputError, "in another way every time"),
        ("Named", SHAPES, InputError, "answers dict with logits; expected a tensor"),
    ],
)
def test_a_module_that_cannot_be_exported_is_named(
    factory: str, shapes: dict[str, tuple[int, ...]], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    options = ExportOptions(source=f"{HERE}:{factory}", input_shapes=shapes)
    with pytest.raises(kind, match=message):
        export_model(RunFolder(root=tmp_path / "run"), options)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused_by_their_keys(tmp_path: Path) -> None:
    state = write_weights(tmp_path)
    state["extra.weight"] = state.pop("head.weight")
    torch.save(state, tmp_path / "renamed.pth")
    with pytest.raises(InputError, match=r"1 keys of the module are not in it, such as head.weight; 1 of its keys are"):
        load_state(users_nets.Net(), tmp_path / "renamed.pth", print)
    with pytest.raises(InputError, match=r"3 tensors have another shape, such as body.0.weight \(6, .*\) for \(7, "):
        load_state(users_nets.Net(7), tmp_path / "plain.pth", print)
    torch.save({"weights": 3}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no state dict but weights"):
        load_state(users_nets.Net(), tmp_path / "none.pth", print)
    torch.save(users_nets.Net(), tmp_path / "whole.pth")
    with pytest.raises(InputError, match="without running code"):
        load_state(users_nets.Net(), tmp_path / "whole.pth", print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "net.onnx", "weights": "w.pth"}, "has its own weights"),
        ({"source": "hf:folder", "weights": "w.pth"}, "has its own weights"),
        ({"source": f"{HERE}:tiny", "weights": "random"}, "that its factory gives it"),
    ],
)
def test_weights_that_go_nowhere_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


def test_runs_are_named_after_the_source(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    named = {"a/b/net.ONNX": "net", f"{HERE}:tiny": "tiny", f"hf:{tmp_path}/vit/": "vit", "resnet": "resnet"}
    assert {source: ExportOptions(source=source).run_name for source in named} == named
