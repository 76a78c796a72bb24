"""Tests of statements: who says how a network wants its images, in which order they count, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from artifacts import InputError, Preprocessing, RunFolder, TensorSpec, UsageError, find_convention, open_model
from export.cli import main
from export.pixels.statements import gather_statements, read_statement, settle_preprocessing
from tests.export.export_graphs import write_convnet

NETWORK = Preprocessing(height=224, width=224)
IMAGE = TensorSpec(name="x", dtype="float32", row_shape=(3, 224, 224))
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIT = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
RESNET = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
MOBILENET = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "MobileNetV2ImageProcessor",
    "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 1 / 255, "size": {"shortest_edge": 256},
}  # fmt: skip
DEIT = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 256,
}  # fmt: skip
MOBILEVIT = {
    "crop_size": {"height": 256, "width": 256}, "do_center_crop": True, "do_flip_channel_order": True,
    "do_normalize": False, "do_rescale": True, "do_resize": True, "image_processor_type": "MobileViTImageProcessor",
    "resample": 2, "rescale_factor": 1 / 255, "size": {"shortest_edge": 288},
}  # fmt: skip
TIMM = {
    "architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": {
        "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "interpolation": "bicubic", "crop_pct": 0.95,
        "test_crop_pct": 1.0, "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
}  # fmt: skip


def fit(plain: dict[str, Any], network: Preprocessing = NETWORK) -> Preprocessing:
    return read_statement(json.dumps(plain)).fit(network)


def cropped(shorter_side: int, **more: Any) -> Preprocessing:
    return Preprocessing(height=224, width=224, resize="centre-crop", shorter_side=shorter_side, **more)


def test_what_hugging_face_writes_is_read_as_it_is_meant() -> None:
    half = {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear"}
    assert fit(VIT) == Preprocessing(height=224, width=224, scale=VIT["rescale_factor"], **half)
    assert fit(RESNET) == cropped(256, interpolation="bicubic", **IMAGENET)
    assert fit(MOBILENET) == cropped(256, **half)
    squashed = Preprocessing(height=224, width=224, resize="squash-crop", shorter_side=256, **IMAGENET)
    assert fit(DEIT) == squashed
    small = Preprocessing(height=256, width=256)
    assert fit(MOBILEVIT, small) == Preprocessing(
        height=256, width=256, resize="centre-crop", shorter_side=288, interpolation="bilinear", channel_order="BGR"
    )
    large = Preprocessing(height=384, width=384)
    assert fit(RESNET, large).resize == "squash", "as ConvNeXt does from 384 pixels on"
    assert fit({**VIT, "do_rescale": False, "image_mean": [127.0], "image_std": [128.0]}).scale == 1.0
    top = fit({**VIT, "image_processor_type": "EfficientNetImageProcessor", "include_top": True})
    assert top.std == (0.25,), "it normalises by the spread a second time"


def test_what_timm_writes_is_read_as_it_is_meant() -> None:
    assert fit(TIMM) == cropped(235, interpolation="bicubic", **IMAGENET)
    tested = fit(TIMM, Preprocessing(height=288, width=288))
    assert (tested.shorter_side, tested.resize) == (288, "centre-crop")
    squashed = fit({**TIMM["pretrained_cfg"], "crop_mode": "squash", "interpolation": "random"})
    assert (squashed.resize, squashed.interpolation) == ("squash-crop", "bilinear")


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        ({**VIT, "image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor has no counterpart"),
        ({**VIT, "do_pad": True}, "do_pad has no counterpart"),
        ({**VIT, "resample": 4}, "resample 4"),
        ({**VIT, "image_mean": None}, "image_mean None: expected numbers"),
        ({**VIT, "image_mean": [0.1, 0.2]}, "expected one finite number, or 3"),
        ({**MOBILENET, "size": {"longest_edge": 256}}, "longest_edge"),
        ({**TIMM["pretrained_cfg"], "crop_mode": "border"}, "crop_mode border"),
        ({**TIMM["pretrained_cfg"], "interpolation": "hamming"}, "interpolation"),
        ({**TIMM["pretrained_cfg"], "crop_pct": "wide"}, "wide"),
    ],
)
def test_what_has_no_counterpart_is_refused_when_asked_for_and_noted_when_found(
    plain: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises((InputError, UsageError), match=f"--preprocess.*{reason}"):
        settle_preprocessing([read_statement(json.dumps(plain))], [IMAGE])
    name = "config.json" if "crop_mode" in plain else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(plain))
    settled = settle_preprocessing(gather_statements(write_file(tmp_path), None), [IMAGE])
    assert settled.preprocessing is None
    assert f"{tmp_path / name} is not used: " in settled.notes[0]
    assert reason in settled.notes[0]
    assert "the mean and spread of your data will be assumed" in settled.notes[1]


def write_file(folder: Path, **metadata: str) -> Path:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.helper.set_model_props(model, metadata)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {"imgsz": "[224, 224]", "names": "{0: 'a'}", "task": "classify", "stride": "1"},
            cropped(224, interpolation="bilinear"),
        ),
        (
            {"model_info mean_values": "123.675 116.28 103.53", "model_info scale_values": "58.395, 57.12, 57.375",
             "model_info reverse_input_channels": "True"},
            Preprocessing(height=224, width=224, scale=1.0, mean=(123.675, 116.28, 103.53),
                          std=(58.395, 57.12, 57.375), interpolation="bilinear"),
        ),
        (
            {"Image.NominalPixelRange": "Normalized_1_1", "Image.BitmapPixelFormat": "Bgr8"},
            Preprocessing(height=224, width=224, mean=(0.5,), std=(0.5,), channel_order="BGR",
                          interpolation="bilinear"),
        ),
        (
            {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"},
            Preprocessing(height=224, width=224, **IMAGENET),
        ),
        (
            {"mean": "127.5", "std": "127.5"},
            Preprocessing(height=224, width=224, scale=1.0, mean=(127.5,), std=(127.5,)),
        ),
    ],
)  # fmt: skip
def test_the_notes_inside_a_file_are_read(metadata: dict[str, str], expected: Preprocessing, tmp_path: Path) -> None:
    (statement,) = gather_statements(write_file(tmp_path, **metadata), None)
    assert statement.origin == "the metadata of net.onnx"
    assert settle_preprocessing([statement], [IMAGE]).preprocessing == expected


def test_notes_that_say_nothing_of_images_or_of_another_task_do_not_count(tmp_path: Path) -> None:
    assert gather_statements(write_file(tmp_path, author="me", names="{0: 'a'}"), None) == ()
    detector = {"imgsz": "[640, 640]", "names": "{}", "task": "detect"}
    settled = settle_preprocessing(gather_statements(write_file(tmp_path, **detector), None), [IMAGE])
    assert settled.preprocessing is None
    assert "task 'detect'" in settled.notes[0]


def test_the_flag_counts_first_then_the_file_then_its_neighbours(tmp_path: Path) -> None:
    path = write_file(tmp_path / "onnx", mean="0.5", std="0.5")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(RESNET))
    (tmp_path / "onnx" / "config.json").write_text(json.dumps(TIMM))
    settled = settle_preprocessing(gather_statements(path, None), [IMAGE])
    assert settled.origin == "the metadata of net.onnx"
    assert [note.split(" says")[0] for note in settled.notes] == [
        "images, as the metadata of net.onnx",
        f"note: {tmp_path / 'preprocessor_config.json'}",
        f"note: {tmp_path / 'onnx' / 'config.json'}",
    ]
    assert all("says otherwise, and does not count" in note for note in settled.notes[1:])
    settled = settle_preprocessing(gather_statements(path, "raw"), [IMAGE])
    assert settled.preprocessing == find_convention("raw").fit(NETWORK)
    assert len(settled.notes) == 1
    (tmp_path / "onnx" / "config.json").write_text(json.dumps({"architectures": ["Bert"], "hidden_size": 3}))
    assert len(gather_statements(path, None)) == 2, "a config.json that is not of timm says nothing"


def test_names_files_and_json_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"mean": [0.1], "std": [0.3]}')
    expected = Preprocessing(height=224, width=224, mean=(0.1,), std=(0.3,))
    assert read_statement(str(path)).fit(NETWORK) == read_statement(path.read_text()).fit(NETWORK) == expected
    for text, error, message in (
        ("imagnet", UsageError, "Did you mean 'imagenet'"),
        (str(tmp_path / "gone.json"), UsageError, "no such file; known names: imagenet"),
        ("{mean: 3}", UsageError, "--preprocess {mean: 3}"),
    ):
        with pytest.raises(error, match=message):
            read_statement(text)
    path.write_text("[1]")
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        read_statement(str(path))


def test_a_network_without_images_takes_no_preprocessing() -> None:
    words = [
        TensorSpec(name="ids", dtype="int64", row_shape=(12,)),
        TensorSpec(name="m", dtype="int64", row_shape=(9,)),
    ]
    assert settle_preprocessing([], words).notes == ()
    for inputs in (words, words[:1]):
        with pytest.raises(UsageError, match="--preprocess imagenet: .*ids"):
            settle_preprocessing([read_statement("imagenet")], inputs)


def test_the_model_records_what_was_said_and_another_word_exports_it_again(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_convnet(graph, tmp_path / "net.onnx")
    run = RunFolder(root=tmp_path / "run")
    words = ["net.onnx", "--segments", "--run", "run"]
    assert main(words) == 0
    assert "note: nothing says how the network wants its images" in capsys.readouterr().err
    assert open_model(run.model, remedy="").spec.preprocessing is None
    assert main([*words, "--preprocess", "imagenet", "--json", "out.json"]) == 0
    assert "images, as --preprocess imagenet says: RGB, shorter side to 8" in capsys.readouterr().err
    spec = open_model(run.model, remedy="").spec
    assert spec.preprocessing == find_convention("imagenet").fit(Preprocessing(height=8, width=8))
    assert spec.settings["preprocessing_said_by"] == "--preprocess imagenet"
    assert json.loads(Path("out.json").read_text())["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert main([*words, "--preprocess", "imagenet"]) == 0
    assert "is up to date" in capsys.readouterr().err
    assert "--preprocess imagenet" in run.remedy("export")
    Path("preprocessor_config.json").write_text(json.dumps({**MOBILENET, "crop_size": 8, "size": 10}))
    assert main(words) == 0
    assert "preprocessor_config.json says: RGB, shorter side to 10, 8 x 8" in capsys.readouterr().err
    assert main([*words, "--preprocess", "imagnet"]) == 2
    assert main([*words, "--preprocess", '{"height": 9}']) == 2
    assert "the network takes (3, 8, 8)" in capsys.readouterr().err


def test_a_family_takes_it_too_and_the_flag_wins_over_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="builds a network: pip install 'pame[train]'")
    run = RunFolder(root=tmp_path / "run")
    assert main(["resnet", "--run", str(run.root)]) == 0
    assert "images, as the weights' recipe says: L, resized to 28 x 28" in capsys.readouterr().err
    assert main(["resnet", "--run", str(run.root), "--preprocess", "unit"]) == 0
    spec = open_model(run.model, remedy="").spec
    assert spec.preprocessing == Preprocessing(height=28, width=28, channel_order="L")
    assert spec.settings["preprocessing_said_by"] == "--preprocess unit"
    assert main(["resnet", "--run", str(run.root), "--preprocess", "imagenet"]) == 2
    assert "the network takes 1 channel" in capsys.readouterr().err
