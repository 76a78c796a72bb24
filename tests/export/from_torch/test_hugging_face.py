"""``hf:DIR``: an image classifier as transformers saves it, with its classes; what else may lie there is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import InputError, MissingExtraError, RunFolder, UsageError
from engines import run_graph
from export import ExportOptions, export_model
from export.from_torch.hugging_face import read_input_shape
from export.options import is_import

CLASSES = {0: "tench", 1: "goldfish, Carassius auratus", 2: "shark"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'pame[hf]'")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", id2label=CLASSES,
        label2id={name: place for place, name in CLASSES.items()},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("hub") / "tiny-resnet"
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"size": {"height": 16, "width": 12}})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny-resnet"))


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def change_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) | values
    write_json(path, {key: value for key, value in content.items() if value is not None})


@pytest.mark.slow
def test_a_folder_is_exported_with_its_classes_and_reused(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    run, options = RunFolder(root=tmp_path / "run"), ExportOptions(source=f"hf:{folder}")
    model = export_model(run, options).model
    assert model.spec.classes == tuple(CLASSES.values())
    assert model.spec.full.inputs[0].row_shape == (3, 16, 12)
    rows = np.random.default_rng(0).standard_normal((3, 3, 16, 12)).astype(np.float32)
    found = run_graph(model.path(model.spec.full), {"pixel_values": rows})
    with torch.inference_mode():
        expected = AutoModelForImageClassification.from_pretrained(folder)(torch.from_numpy(rows)).logits
    np.testing.assert_allclose(found["logits"], expected.numpy(), atol=1e-5)
    said: list[str] = []
    assert export_model(run, options, report=said.append).reused
    assert not any("exporting" in line for line in said), "what is unchanged is known by its files"
    change_json(folder / "config.json", id2label={str(key): str(key) for key in CLASSES})
    assert export_model(run, options).model.spec.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("preprocessor", "config", "shape"),
    [
        ({"size": {"height": 20, "width": 30}}, {}, (3, 20, 30)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            {},
            (3, 8, 8),
        ),
        ({"size": 32, "do_center_crop": False, "crop_size": 8}, {"num_channels": 1}, (1, 32, 32)),
        ({}, {"image_size": 64}, (3, 64, 64)),
        ({"size": {"shortest_edge": 256}}, {"image_size": [10, 12]}, (3, 10, 12)),
    ],
)
def test_the_shape_of_an_image_is_read(
    preprocessor: dict[str, Any], config: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    if preprocessor:
        write_json(tmp_path / "preprocessor_config.json", preprocessor)
    assert read_input_shape(tmp_path, config) == shape


def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    def refuse(kind: type[Exception], message: str, source: str | None = None) -> None:
        with pytest.raises(kind, match=message):
            export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=source or f"hf:{folder}"))

    refuse(UsageError, "nothing is fetched.*hf download google/vit --local-dir", "hf:google/vit")
    (folder / "preprocessor_config.json").unlink()
    refuse(UsageError, "--input-shape 3,224,224")
    change_json(folder / "config.json", auto_map={"AutoModel": "mine.Net"}, image_size=16)
    refuse(InputError, "code of its own")
    change_json(folder / "config.json", auto_map=None, architectures=["BertModel"])
    refuse(InputError, "names BertModel; expected a classifier of images")
    change_json(folder / "config.json", architectures=["ResNetForImageClassification"], hidden_sizes=[4, 8])
    refuse(InputError, "does not hold the whole network|cannot be loaded")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(InputError, "has no model.safetensors")
    (folder / "config.json").write_text("{")
    refuse(InputError, "cannot be read as JSON")
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_never_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("classifier.1.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="it lacks classifier.1.weight.*at random"):
        export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=f"hf:{folder}"))


def test_without_transformers_the_extra_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pame\[hf\]"):
        export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=f"hf:{folder}"))


def test_sources_are_told_apart() -> None:
    assert [is_import(word) for word in ("hf:x", "torch:a:b", "x.onnx", "X.ONNX", "resnet", "hfx")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
