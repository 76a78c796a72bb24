"""Hugging Face: a classifier in a folder, as ``save_pretrained`` writes it; nothing is fetched, no code is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import InputError, RunFolder, UsageError, file_digest, package_version
from export.folder.pipeline import ExportResult
from export.from_torch.hugging_face_loading import load_classifier
from export.from_torch.hugging_face_text import read_text_network
from export.from_torch.modules import TorchNetwork, publish_network
from export.options import ExportOptions
from export.pixels.neighbours import HUGGING_FACE, read_object

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_KIND = "ForImageClassification"
_TEXT_KIND = "ForSequenceClassification"
_INPUT = "pixel_values"
_UNNAMED = "LABEL_"  # how transformers names classes that nobody named


def export_hugging_face(run: RunFolder, options: ExportOptions, *, report: Callable[[str], None]) -> ExportResult:
    """Exports the classifier of images or texts of ``hf:DIR``, or reuses what is there if its files are the same.

    Raises:
        UsageError: there is no such folder, or no shape of its images.
        InputError: it holds something else, or not all of it.
        MissingExtraError: transformers is not installed.
        GraphError: torch cannot export it, or it has no cuts.
    """
    folder = options.folder
    config = _read_config(folder)
    if any(str(kind).endswith(_TEXT_KIND) for kind in config.get("architectures") or []):
        network = read_text_network(folder, config, options, classes=_read_classes(config))
        files = {**_digest_files(folder), "transformers": package_version("transformers") or ""}
        if network.text is not None:
            files["tokenizer"] = file_digest(network.text.tokenizer)
        return publish_network(
            run, replace(network, files=files, command=options.command(run)), options, report=report
        )  # fmt: skip
    for flag, value in (("--length", options.length), ("--tokenizer", options.tokenizer)):
        if value is not None:
            raise UsageError(f"{flag}: {options.source} takes images; omit the flag")
    shapes = dict(options.input_shapes)
    shape = shapes.pop(_INPUT, shapes.pop("", None)) or read_input_shape(folder, config)
    if shapes:
        raise UsageError(f"--input-shape {', '.join(shapes)}: {options.source} has one input, '{_INPUT}'")
    network = TorchNetwork(
        module=_Logits(load_classifier(folder, "AutoModelForImageClassification", "an image classifier")),
        examples=(torch.zeros(2, *shape),),
        input_names=[_INPUT],
        output_names=["logits"],
        classes=_read_classes(config),
        neighbours=(folder,),
        files={**_digest_files(folder), "transformers": package_version("transformers") or ""},
        command=options.command(run),
    )
    return publish_network(run, network, options, report=report)


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Reads ``config.json`` and checks that the folder holds a classifier."""
    if not folder.is_dir():
        raise UsageError(
            f"hf:{folder}: there is no such folder, and nothing is fetched. Fetch it first: "
            f"hf download {folder} --local-dir DIR, and say hf:DIR"
        )
    config = read_object(folder / _CONFIG)
    kinds = config.get("architectures") or []
    if not any(str(kind).endswith((_KIND, _TEXT_KIND)) for kind in kinds):
        raise InputError(
            f"{folder / _CONFIG} names {', '.join(map(str, kinds)) or 'no architecture'}; expected a classifier of "
            f"images (...{_KIND}) or texts (...{_TEXT_KIND}). Other networks go in as ONNX: optimum-cli export onnx "
            f"--model {folder} OUT"
        )
    if "auto_map" in config:
        raise InputError(
            f"{folder / _CONFIG} asks for code of its own (auto_map), and none is run from a folder. Name a factory "
            "of yours instead: torch:package.module:factory"
        )
    if not any((folder / name).is_file() for name in (_WEIGHTS, _INDEX)):
        raise InputError(
            f"{folder} has no {_WEIGHTS}; weights in other files may hold code. Save it again: "
            "model.save_pretrained(DIR), with a transformers of the last years"
        )
    return config


def _read_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the classes in the order of the answers; none where nobody named them."""
    names = config.get("id2label") or {}
    try:
        classes = tuple(str(names[key]) for key in sorted(names, key=int))
    except (ValueError, TypeError) as error:
        raise InputError(f"{_CONFIG}: id2label does not number the classes: {error}") from error
    return () if all(name.startswith(_UNNAMED) for name in classes) else classes


def read_input_shape(folder: Path, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the shape of one image: what its preprocessor cuts or resizes to, else what the network was made for.

    Raises:
        UsageError: the folder does not say it.
    """
    stated = read_object(folder / HUGGING_FACE) if (folder / HUGGING_FACE).is_file() else {}
    sizes = [stated.get("crop_size")] if stated.get("do_center_crop") else []
    for size in (*sizes, stated.get("size"), config.get("image_size")):
        found = _read_size(size)
        if found is not None:
            return (int(config.get("num_channels", 3)), *found)
    raise UsageError(
        f"neither {folder / HUGGING_FACE} nor {_CONFIG} says how large an image is; say it: --input-shape 3,224,224"
    )


def _read_size(size: Any) -> tuple[int, int] | None:
    """Returns height and width; ``None`` for a size that is not both, that of a shorter side for instance."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    elif isinstance(size, int):
        size = [size, size]
    whole = isinstance(size, list) and len(size) == 2 and all(isinstance(item, int) for item in size)
    return (size[0], size[1]) if whole else None


def _digest_files(folder: Path) -> dict[str, str]:
    files = [folder / _CONFIG, *sorted(folder.glob("*.safetensors"))]
    return {file.name: file_digest(file) for file in files}


class _Logits(nn.Module):
    """The classifier with its logits alone as answer: (B, C, H, W) -> (B, classes)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor) -> Tensor:
        answer: Tensor = self.classifier(pixel_values=pixel_values).logits
        return answer
