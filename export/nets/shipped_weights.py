"""Weights that ship with PAME: ``export/nets/pretrained/<name>/``, an artifact of kind ``weights``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import GraphError, read_json, write_json

RECIPE_JSON = "recipe.json"
WEIGHTS_FILE = "weights.safetensors"
PRETRAINED_ROOT = Path(__file__).parent / "pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How shipped weights came about.

    Attributes:
        family: ``resnet``.
        depth, classes, input_shape, every, head: of the network and its exits, as in ``ExportOptions``.
        mean, std: normalisation of pixel values in [0, 1] that the network expects.
        dataset: what it was trained on.
        training: the training's configuration, for the record.
        history: per epoch what was measured, for the record.
        test_metric: exit name (and ``final``) -> metric on the test part.
    """

    family: str
    depth: int
    classes: int
    input_shape: tuple[int, ...]
    every: int
    head: str
    mean: float
    std: float
    dataset: str
    training: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    test_metric: Mapping[str, float] = field(default_factory=dict)


def pretrained_folder(name: str, *, root: Path | None = None) -> Path | None:
    """Returns the folder of shipped weights, or ``None`` where none are shipped under that name."""
    folder = (PRETRAINED_ROOT if root is None else root) / name
    return folder if (folder / RECIPE_JSON).is_file() else None


def find_pretrained(depth: int, classes: int, input_shape: tuple[int, ...], *, root: Path | None = None) -> Path | None:
    """Returns the folder of shipped weights for a ResNet, or ``None``; the first by name where there are several."""
    root = PRETRAINED_ROOT if root is None else root
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if pretrained_folder(folder.name, root=root) is None:
            continue
        recipe = read_recipe(folder)
        if (recipe.depth, recipe.classes, recipe.input_shape) == (depth, classes, input_shape):
            return folder
    return None


def read_recipe(folder: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        GraphError: it is of a family that is not known here.
    """
    recipe = read_json(folder / RECIPE_JSON, Recipe)
    if recipe.family != "resnet" or len(recipe.input_shape) != 3:
        raise GraphError(f"{folder / RECIPE_JSON}: expected family 'resnet' with (channels, height, width) images")
    return recipe


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes ``recipe.json`` into a staging folder."""
    write_json(folder / RECIPE_JSON, recipe)
