"""Weights of a family: shipped, one's own or of others, and what is known with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from artifacts import GraphError, UsageError, open_artifact
from export.nets.family import Family, replace_options, settle_options
from export.nets.shipped_weights import RECIPE_JSON, WEIGHTS_FILE, Recipe, find_pretrained, read_recipe
from export.nets.table import NetConfig
from export.nets.weights import read_weights, split_heads, strip_parallel
from export.options import FETCHED, PRETRAINED, RANDOM, ExportOptions

Adapt = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenWeights:
    """The weights of a net, where they come from, and what is known with them.

    Attributes:
        config: the family's options that they are of.
        label: what ``model.json`` calls them.
        file: of the tensors; ``None``: none, the net is drawn at random.
        state: the tensors.
        recipe: beside the weights; ``None``: there is none.
        adapt: as in ``NetWeights``; ``None``: the tensors have the net's own names.
        classes: their names; none where they are not known.
    """

    config: NetConfig
    label: str
    file: Path | None = None
    state: Mapping[str, Tensor] | None = None
    recipe: Recipe | None = None
    adapt: Adapt | None = None
    classes: tuple[str, ...] = ()


def find_weights(family: Family, options: ExportOptions) -> GivenWeights:
    """Returns the weights that an export names.

    Raises:
        UsageError: there are none, or an option contradicts them.
        InputError: they cannot be read.
        GraphError: they are of another family.
    """
    config = options.net or family.config()
    if options.weights == RANDOM:
        return GivenWeights(config=config, label=RANDOM)
    if options.weights == PRETRAINED:
        return _find_shipped(family, config)
    path = Path(options.weights)
    others = None if family.open_weights is None else family.open_weights(path, config)
    if others is not None:
        return GivenWeights(
            config=others.config, label=options.weights if options.weights in FETCHED else others.file.name,
            file=others.file, state=read_weights(others.file), adapt=others.adapt, classes=others.classes,
        )  # fmt: skip
    return _read_given(family, config, path)


def _find_shipped(family: Family, config: NetConfig) -> GivenWeights:
    """Returns the weights that ship with PAME for just these options; where none were given, those of the family."""
    folder = find_pretrained(family.name, family.record(config))
    if folder is None and config == family.config():
        folder = find_pretrained(family.name, None)
    if folder is None:
        rows = " and ".join(f"{spec.name} {','.join(map(str, spec.row_shape))}" for spec in family.inputs(config))
        raise UsageError(
            f"no weights are shipped for {family.title(config)} with {config.classes} classes and {rows}. Give some "
            "with --weights FILE, or start with --weights random"
        )
    artifact = open_artifact(folder, kind="weights", remedy="pip install --force-reinstall pame")
    file, recipe = artifact.path(WEIGHTS_FILE), read_recipe(folder)
    return GivenWeights(
        config=family.read(recipe.options), label=PRETRAINED, file=file, state=read_weights(file), recipe=recipe
    )


def _read_given(family: Family, config: NetConfig, path: Path) -> GivenWeights:
    """Reads weights of one's own, or of others, and settles with them which network of the family it is."""
    state = read_weights(path)
    recipe = read_recipe(path.parent) if (path.parent / RECIPE_JSON).is_file() else None
    if recipe is not None and recipe.family != family.name:
        raise UsageError(
            f"--weights {path}: {RECIPE_JSON} beside it says that they are of the family '{recipe.family}', not of "
            f"'{family.name}'. Export that family: python -m export {recipe.family} --weights {path}"
        )
    if recipe is not None:
        config = _take_sizes(family, config, recipe)
    found = GivenWeights(config=config, label=path.name, file=path, state=state, recipe=recipe)
    if family.fit_state is None:
        return found
    backbone, heads = split_heads(state)
    try:
        fitted = family.fit_state(strip_parallel(backbone))
    except GraphError as error:
        raise GraphError(f"--weights {path}: {error}") from error
    settled = settle_options(family, config, fitted, where=str(path))
    return GivenWeights(
        config=settled, label=path.name, file=path, state={**fitted.state, **heads}, recipe=recipe
    )  # fmt: skip


def _take_sizes(family: Family, config: NetConfig, recipe: Recipe) -> NetConfig:
    """Returns the options with those of the recipe where nothing else was said: the images' size, or all of tokens."""
    defaults, stated = family.config(), family.read(recipe.options)
    if family.reads_text:
        return stated if config == defaults else config
    name = "input_shape"
    said = getattr(config, name, None) != getattr(defaults, name, None)
    return config if said else replace_options(config, **{name: getattr(stated, name)})
