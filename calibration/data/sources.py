"""Which data a run uses: what the user names, what its trace was made from, or Fashion-MNIST where that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from artifacts import MANIFEST, GraphError, InputError, Model, RunFolder, UsageError, open_model, read_manifest
from calibration.data.datasets import Dataset, load_dataset
from calibration.data.fashion_mnist import load_fashion_mnist

CACHE = Path("~/.cache/pame/fashion-mnist")
FASHION_MNIST = "fashion-mnist"
EXPORT_FIRST = "python -m export resnet --segments"


def image_shape(model: Model) -> tuple[int, int, int]:
    """Returns (C, H, W) of the images that a model takes.

    Raises:
        GraphError: the model takes something else.
    """
    inputs = model.spec.full.inputs
    shape = inputs[0].row_shape
    if len(inputs) != 1 or len(shape) != 3 or inputs[0].dtype != "float32":
        described = ", ".join(f"{spec.name} {spec.dtype} {spec.row_shape}" for spec in inputs)
        raise GraphError(
            f"training and traces know one float32 image input (C, H, W); {model.spec.name} takes {described}"
        )
    return shape


def class_count(model: Model) -> int:
    """Returns the number of classes that a model tells apart."""
    return model.spec.full.output(model.spec.full.answers[0]).row_shape[-1]


def normalisation_of(model: Model) -> tuple[float, float] | None:
    """Returns mean and spread of the pixel values in [0, 1] that a model was trained with; ``None``: not recorded."""
    stated = model.spec.stated_preprocessing()
    return None if stated is None else (stated.mean[0], stated.std[0])


def load_run_data(run: RunFolder, data: Path | None = None) -> Dataset:
    """Loads the data of a run, normalised as its network was trained where that is recorded.

    Args:
        run: its model says which images are needed, its trace which data it was made from.
        data: ``--data``; wins when given.

    Raises:
        UsageError: nothing was named and Fashion-MNIST does not fit the model.
        InputError: the data cannot be read, or has more classes than the model.
    """
    model = open_model(run.model, remedy=EXPORT_FIRST)
    source = _named_source(data) if data is not None else _recorded_source(run)
    shape, classes = image_shape(model), class_count(model)
    if source is None and (shape, classes) == ((1, 28, 28), 10):
        source = FASHION_MNIST
    if source is None:
        raise UsageError(
            f"{model.spec.name} takes images {shape} of {classes} classes: name your data with --data DIR "
            "(one sub-folder per class, or an .npz with images and labels; where the exit heads are trained, queries "
            "without labels will do: a folder of images, or an .npz with images alone)"
        )
    dataset = (
        load_fashion_mnist(CACHE.expanduser()) if source == FASHION_MNIST else load_dataset(Path(source), shape=shape)
    )
    if len(dataset.classes) > classes or dataset.images.shape[1:] != shape:
        raise InputError(
            f"{dataset.name} has {len(dataset.classes)} classes and images {dataset.images.shape[1:]}; "
            f"{model.spec.name} tells {classes} classes apart and takes {shape}"
        )
    known = normalisation_of(model)
    return dataset if known is None else replace(dataset, mean=known[0], std=known[1])


def source_name(data: Dataset, path: Path | None, run: RunFolder) -> str:
    """Returns what is recorded so that later commands find the same data by themselves."""
    if path is not None:
        return _named_source(path)
    return _recorded_source(run) or data.name


def _named_source(data: Path) -> str:
    return FASHION_MNIST if str(data) == FASHION_MNIST and not data.exists() else str(data.resolve())


def _recorded_source(run: RunFolder) -> str | None:
    if not (run.trace / MANIFEST).is_file():
        return None
    source = read_manifest(run.trace).parameters.get("data_source")
    return source if isinstance(source, str) else None
