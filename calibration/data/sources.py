"""Sources: the data of a run, as the user names it, as its trace recorded it, or Fashion-MNIST where that fits."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import (
    MANIFEST,
    InputError,
    Model,
    Regression,
    RunFolder,
    TextEncoder,
    UsageError,
    cache_folder,
    name_token_inputs,
    open_model,
    read_manifest,
)
from calibration.data.arrays import ArrayImages
from calibration.data.class_names import follow_network
from calibration.data.files import FileImages
from calibration.data.image_input import ImageInput, image_input_of
from calibration.data.labels import CLASSES_TXT
from calibration.data.loading import load_samples
from calibration.data.published.fashion_mnist import find_cache, load_fashion_mnist
from calibration.data.samples import ImageSamples, Samples, check_inputs
from calibration.data.splits import Splitting
from calibration.dense.loading import has_answers, load_dense
from calibration.text.film_reviews import FILM_REVIEWS, fetch_film_reviews
from calibration.text.loading import load_texts
from calibration.text.samples import TextSamples

FASHION_MNIST = "fashion-mnist"
DENSE_TASKS = ("segmentation", "pose")
DATA_HELP = (
    "your data: class folders, an .npz or a .csv of images; queries without labels: a folder or an .npz of images "
    "alone; of a network of tokens a .tsv, .csv or .parquet of texts, or a folder of them; module:object for samples "
    "of your own"
)
DataSource = str | Path | Samples
"""What ``--data`` names: a folder, a file, ``module:object`` or ``fashion-mnist``; or samples themselves."""
SPLIT_SEED, SPLIT_RULED = "split_seed", "split_rule"
"""The notes of a trace on how parts were drawn where the data has none."""
TRAINED_ON = "data_source"
"""The note of a training's result that says which data the exit heads were trained on."""
_log = logging.getLogger("pame.calibration")


def class_count(model: Model) -> int | None:
    """Returns the number of classes that a model tells apart; ``None`` where its answers are not classes."""
    answer = model.spec.full.output(model.spec.full.answers[0]).row_shape
    return answer[0] if len(answer) == 1 else None


def load_run_data(
    run: RunFolder, data: DataSource | None = None, *, parts: str | None = None, training: bool = False,
    report: Callable[[str], None] = _log.info,
) -> Samples:  # fmt: skip
    """Loads the data of a run, prepared as its network was trained where that is recorded.

    Args:
        run: its model says which inputs are needed, its trace which data it was made from.
        data: ``--data``, or samples; wins when given.
        parts: ``--parts``; ``None``: what was given when the run's trace was made from the same data.
        training: there shall be a train part, of data without labels too; otherwise where exit heads need one.
        report: receives notes on the data for the user.

    Raises:
        UsageError: nothing was named and Fashion-MNIST does not fit the model.
        InputError: the data cannot be read, does not fit the network, or has more classes than it.
    """
    model = open_model(run.model, remedy=run.remedy("export"))
    if isinstance(data, Samples):
        check_inputs(data, model)
        return data
    source = name_source(data) if data is not None else recorded_source(run)
    if source is None and _takes_fashion_mnist(model):
        source = FASHION_MNIST
    if source is None:
        inputs = ", ".join(f"'{spec.name}' {spec.dtype} {spec.row_shape}" for spec in model.spec.full.inputs)
        raise UsageError(
            f"{model.spec.name} takes {inputs}: name your data with --data DIR (train.tsv, dev.tsv and test.tsv with "
            "the columns text and label, or tables like them)"
            if model.spec.text is not None
            else f"{model.spec.name} takes {inputs}: name your data with --data DIR "
            "(one sub-folder per class, or an .npz with images and labels; queries without labels: a folder of images, "
            "or an .npz with images alone)"
        )
    parts = parts or recorded_parts(run, source)
    splitting = replace(
        Splitting.parse(parts, train_queries=training or _trains_on(run, model, source)), fixed=_drawn_before(run)
    )
    if is_reference(source):
        if parts is not None:
            raise UsageError(f"--parts {parts}: samples of your own ({source}) decide about their parts themselves")
        samples = _open_reference(source, model, given=data is not None)
    elif model.spec.task in DENSE_TASKS and has_answers(Path(source)):
        return load_dense(Path(source), model, splitting=splitting, report=report)
    elif model.spec.text is not None:
        place = fetch_film_reviews(cache_folder(FILM_REVIEWS)) if source == FILM_REVIEWS else Path(source)
        samples = _open_texts(place, model, splitting, report)
    else:
        _refuse_untokenised(model)
        samples = _open_images(source, model, splitting, report)
    if model.spec.task in DENSE_TASKS and samples.labelled and not is_reference(source):
        raise InputError(
            f"--data {source} holds labels of whole images, and {model.spec.name} is of the task {model.spec.task}: "
            "name a folder of images with masks or joints (docs/dense.md), or of images alone"
        )
    classes = class_count(model)
    if classes is not None and isinstance(samples, ImageSamples | TextSamples) and len(samples.classes) > classes:
        none = bool((samples.targets(samples.indices_of("train")) > 0).all()) if samples.labelled else False
        raise InputError(
            f"{samples.name} has {len(samples.classes)} classes; {model.spec.name} tells {classes} classes apart"
            + ". No sample has the first: if its labels are counted from 1, count them from 0" * none
        )
    return samples


def _trains_on(run: RunFolder, model: Model, source: str) -> bool:
    """Tells whether data without labels needs a train part: exit heads are missing, or were trained on this data."""
    if any(cut.name not in model.spec.heads for cut in model.spec.cuts[:-1]):
        return True
    result = run.training / "result"
    return (result / MANIFEST).is_file() and read_manifest(result).environment.get(TRAINED_ON) == source


def _takes_fashion_mnist(model: Model) -> bool:
    inputs = model.spec.full.inputs
    return len(inputs) == 1 and inputs[0].row_shape == (1, 28, 28) and class_count(model) == 10


def _open_reference(source: str, model: Model, *, given: bool) -> Samples:
    if not given:
        raise UsageError(
            f"the trace was made from the samples {source}, and what a file names is never imported: name them "
            f"again with --data {source}"
        )
    return _import_samples(source, model)


def _open_images(
    source: str, model: Model, splitting: Splitting, report: Callable[[str], None]
) -> ArrayImages | FileImages:
    want = image_input_of(model)
    samples = (
        _load_fashion_mnist(model, want)
        if source == FASHION_MNIST
        else _load_named(Path(source), want, model, splitting, report)
    )
    if not want.stated:
        own = samples.preprocessing
        report(
            f"note: {model.artifact.folder} does not say how pixels were normalised in training; those of "
            f"{samples.name} are by its own mean {own.mean[0]:g} and spread {own.std[0]:g}"
        )
    return samples


def _open_texts(source: Path, model: Model, splitting: Splitting, report: Callable[[str], None]) -> Samples:
    """Loads texts with their classes in the order of ``classes.txt``, else in that of the network's own names."""
    wanted = model.spec.text
    if wanted is None:
        raise TypeError(f"{model.spec.name} takes no texts")
    encoder = TextEncoder(model.artifact.path(wanted.tokenizer), wanted, model.spec.full.inputs)
    numbers = model.spec.task == Regression.name
    samples = load_texts(source, encoder, numbers=numbers, splitting=splitting, report=report)
    listed = (source if source.is_dir() else source.parent) / CLASSES_TXT
    known = model.spec.classes if len(model.spec.classes) == class_count(model) and not numbers else ()
    return follow_network(
        samples, () if listed.is_file() else known, remedy=f"{listed}, one name a line", report=report
    )  # fmt: skip


def _refuse_untokenised(model: Model) -> None:
    """Refuses files for a network of tokens whose tokenizer is not known."""
    if name_token_inputs([spec.name for spec in model.spec.full.inputs]) is not None:
        raise InputError(
            f"{model.spec.name} takes tokens, and {model.artifact.folder} holds no tokenizer. Export it again with "
            "--tokenizer tokenizer.json, or bring token ids as samples of your own with --data module:object"
        )


def _load_named(
    source: Path, want: ImageInput, model: Model, splitting: Splitting, report: Callable[[str], None]
) -> ArrayImages | FileImages:
    """Loads images with their classes in the order of ``classes.txt``, else in that of the network's own names."""
    listed = (source if source.is_dir() else source.parent) / CLASSES_TXT
    known = model.spec.classes if len(model.spec.classes) == class_count(model) else ()
    names = () if listed.is_file() else known
    count = None if names else class_count(model)  # with names nothing need be guessed from how many there are
    samples = load_samples(source, want, class_count=count, splitting=splitting, report=report)
    return follow_network(samples, names, remedy=f"{listed}, one name a line", report=report)


def _load_fashion_mnist(model: Model, want: ImageInput) -> ArrayImages:
    found = load_fashion_mnist(find_cache())
    if found.input.row_shape != want.row_shape:
        raise InputError(f"{found.name} has images {found.input.row_shape}; {model.spec.name} takes {want.row_shape}")
    preprocessing = want.preprocessing if want.stated else found.preprocessing
    return replace(found, input=replace(want, preprocessing=preprocessing))


def _import_samples(reference: str, model: Model) -> Samples:
    """Imports the samples that the person at the keyboard named as ``module:object``."""
    found = _import_object(reference)
    made = isinstance(found, type) or (callable(found) and not isinstance(found, Samples))
    samples = found() if made else found
    if not isinstance(samples, Samples):
        raise UsageError(
            f"--data {reference}: {type(samples).__name__} is not samples; see calibration.Samples for its methods"
        )
    check_inputs(samples, model)
    return samples


def _import_object(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--data {reference}: {error}; expected module:object, with the module on PYTHONPATH"
        ) from error


def source_name(samples: Samples, data: DataSource | None, run: RunFolder) -> str:
    """Returns what is recorded so that later commands find the same data by themselves."""
    if data is None:
        return recorded_source(run) or samples.name
    return samples.name if isinstance(data, Samples) else name_source(data)


def check_source(data: DataSource | None) -> None:
    """Refuses data that is not there, before anything is made for it.

    Raises:
        InputError: nothing lies where ``--data`` says.
        UsageError: ``module:object`` cannot be imported.
    """
    if data is None or isinstance(data, Samples):
        return
    source = name_source(data)
    if is_reference(source):
        _import_object(source)
    elif source != FASHION_MNIST and not Path(source).exists():
        raise InputError(f"--data {data}: there is nothing of that name")


def is_reference(source: str) -> bool:
    """Tells whether a source is ``module:object`` rather than a path."""
    module, colon, attribute = source.partition(":")
    names = [*module.split("."), attribute]
    return bool(colon) and all(name.isidentifier() for name in names) and not Path(source).exists()


def name_source(data: str | Path) -> str:
    """Returns the absolute path that ``--data`` names, or the name of what is not a path."""
    word = str(data)
    if is_reference(word) or (word in (FASHION_MNIST, FILM_REVIEWS) and not Path(data).exists()):
        return word
    return str(Path(data).resolve())


def recorded_parts(run: RunFolder, source: str) -> str | None:
    """Returns the ``--parts`` that the run's trace was made with, if it was made from the same source."""
    parts = recorded_choice(run, source, "parts")
    return parts if isinstance(parts, str) else None


def recorded_choice(run: RunFolder, source: str, name: str) -> object:
    """Returns a parameter that the run's trace was made with, if it was made from the same source, else ``None``."""
    if not (run.trace / MANIFEST).is_file():
        return None
    parameters = read_manifest(run.trace).parameters
    return parameters.get(name) if parameters.get("data_source") == source else None


def _drawn_before(run: RunFolder) -> bool:
    """Tells whether the run's trace was made of a part that an earlier release drew."""
    if not (run.trace / MANIFEST).is_file():
        return False
    notes = read_manifest(run.trace).environment
    return SPLIT_SEED in notes and SPLIT_RULED not in notes


def recorded_source(run: RunFolder) -> str | None:
    """Returns the source that the run's trace was made from; ``None`` without a trace that says so."""
    if not (run.trace / MANIFEST).is_file():
        return None
    source = read_manifest(run.trace).parameters.get("data_source")
    return source if isinstance(source, str) else None
