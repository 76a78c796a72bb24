"""Shipped weights and their recipes: ``export/nets/pretrained/<name>/``, artifacts of kind ``weights``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts import Preprocessing, SchemaError, from_plain, name_channels, read_json, write_json

RECIPE_JSON = "recipe.json"
WEIGHTS_FILE = "weights.safetensors"
PRETRAINED_ROOT = Path(__file__).parent / "pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The recipe of weights: what they belong to and how they were trained.

    Attributes:
        family: a family's name.
        options: of the family, as in the settings of ``model.json``.
        every, head: where the exits sit and what their heads look like, as in ``ExportOptions``.
        preprocessing: how the network wants its images; ``None`` where that is not recorded.
        dataset: what it was trained on.
        training: the training's configuration, for the record.
        history: per epoch what was measured, for the record.
        test_metric: exit name (and that of the final head) -> metric on the test part.
        task: what the answers mean; ``None``: what they mean in the family.
        classes: names of the classes; none where they are not known.
    """

    family: str
    options: Mapping[str, str | int | float | bool]
    every: int
    head: str
    preprocessing: Preprocessing | None = None
    dataset: str
    training: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    test_metric: Mapping[str, float] = field(default_factory=dict)
    task: str | None = None
    classes: tuple[str, ...] = ()


def pretrained_folder(name: str, *, root: Path | None = None) -> Path | None:
    """Returns the folder of shipped weights, or ``None`` where none are shipped under that name."""
    folder = (PRETRAINED_ROOT if root is None else root) / name
    return folder if (folder / RECIPE_JSON).is_file() else None


def find_pretrained(family: str, options: Mapping[str, object] | None, *, root: Path | None = None) -> Path | None:
    """Returns the folder of shipped weights for a network, or ``None``; the first by name where there are several.

    Args:
        family: a family's name.
        options: of the family, as in the settings of ``model.json``; ``None``: any.
        root: where to look; ``None``: what ships with PAME.
    """
    for folder in _recipe_folders(PRETRAINED_ROOT if root is None else root):
        recipe = read_recipe(folder)
        if recipe.family == family and (options is None or dict(recipe.options) == dict(options)):
            return folder
    return None


def _recipe_folders(root: Path) -> Iterator[Path]:
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if (folder / RECIPE_JSON).is_file():
            yield folder


def read_recipe(folder: Path) -> Recipe:
    """Reads a recipe, of this release or of 0.1.0.

    Raises:
        SchemaError: the file is something else.
    """
    path = folder / RECIPE_JSON
    plain = read_json(path, dict[str, Any])
    try:
        return from_plain(Recipe, plain if "options" in plain else _upgrade(plain))
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _upgrade(plain: dict[str, Any]) -> dict[str, Any]:
    """Turns a recipe of release 0.1.0 into one of today: it knew one family, and one mean for all channels."""
    rest = dict(plain)
    try:
        shape = [int(size) for size in rest.pop("input_shape")]
        channels, height, width = shape
        options = {"depth": rest.pop("depth"), "classes": rest.pop("classes"), "input_shape": ",".join(map(str, shape))}
        pixels = {"mean": [rest.pop("mean")], "std": [rest.pop("std")]}
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"not a recipe of release 0.1.0: {error!r}; expected depth, classes, mean, std and an input_shape of "
            "(channels, height, width)"
        ) from error
    order, count = name_channels(channels)
    preprocessing = {"height": height, "width": width, "channel_order": order, "channel_count": count, **pixels}
    return {**rest, "options": options, "preprocessing": preprocessing}


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes ``recipe.json`` into a staging folder."""
    write_json(folder / RECIPE_JSON, recipe)
