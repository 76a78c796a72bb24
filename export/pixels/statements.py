"""Statements: who says how a network wants its images, and which of them counts.

The user's ``--preprocess`` counts first, then what the file itself and its neighbours say, then the recipe of a
family's weights. Where nobody says anything, calibration assumes, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import (
    CONVENTIONS,
    GraphError,
    InputError,
    Preprocessing,
    TensorSpec,
    UsageError,
    find_convention,
    fit_fields,
    plain_preprocessing,
)
from export.graphs.reading import read_metadata
from export.pixels.metadata import read_metadata_pixels, relevant_metadata
from export.pixels.neighbours import (
    HUGGING_FACE,
    TIMM,
    is_hugging_face,
    is_timm,
    neighbour_folders,
    read_hugging_face,
    read_object,
    read_timm,
)

FLAG = "--preprocess"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One voice about how a network wants its images.

    Attributes:
        origin: who says so, for people and for ``model.json``.
        says: the text itself, for the manifest: a name, or a JSON object.
        fit: makes a preprocessing of it, from the plain one of the network's input.
        asked: the user named it; otherwise it was found.
    """

    origin: str
    says: str | Mapping[str, Any]
    fit: Callable[[Preprocessing], Preprocessing]
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The preprocessing that counts.

    Attributes:
        preprocessing: ``None``: nobody says, or the network takes no images.
        origin: who says so.
        notes: lines for the user.
    """

    preprocessing: Preprocessing | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()


def read_statement(text: str) -> Statement:
    """Reads what ``--preprocess`` was given: a convention's name, a JSON file, or JSON itself.

    The JSON has fields of ``Preprocessing``, or is the ``preprocessor_config.json`` of Hugging Face or the
    ``config.json`` of timm.

    Raises:
        UsageError: there is no such name or file.
        InputError: the file is no JSON object.
    """
    origin = f"{FLAG} {text}"
    if text.lstrip().startswith("{"):
        try:
            return _state_object(json.loads(text), origin)
        except ValueError as error:
            raise UsageError(f"{origin}: {error}") from error
    path = Path(text)
    if path.is_file():
        return _state_object(read_object(path), origin)
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"{origin}: there is no such file; known names: {_names()}")
    convention = find_convention(text)
    return Statement(origin=origin, says=text, fit=convention.fit, asked=True)


def _names() -> str:
    return ", ".join(convention.name for convention in CONVENTIONS)


def _state_object(plain: dict[str, Any], origin: str) -> Statement:
    fit = _reader_of(plain) or (lambda network: fit_fields(plain, network, where=origin))
    return Statement(origin=origin, says=plain, fit=fit, asked=True)


def _reader_of(plain: dict[str, Any]) -> Callable[[Preprocessing], Preprocessing] | None:
    if is_hugging_face(plain):
        return lambda network: read_hugging_face(plain, network)
    return (lambda network: read_timm(plain, network)) if is_timm(plain) else None


def gather_statements(path: Path, asked: str | None) -> tuple[Statement, ...]:
    """Returns what is said about an ``.onnx`` file's images, in the order in which it counts.

    Args:
        path: the file.
        asked: ``--preprocess``; where it is given, nothing else is looked for.

    Raises:
        UsageError, InputError: as ``read_statement`` and ``export.graphs.reading.read_metadata``.
    """
    if asked is not None:
        return (read_statement(asked),)
    found = []
    if metadata := relevant_metadata(read_metadata(path)):
        fit = partial(read_metadata_pixels, metadata)
        found.append(Statement(origin=f"the metadata of {path.name}", says=metadata, fit=fit))
    return (*found, *find_neighbours(neighbour_folders(path)))


def find_neighbours(folders: Sequence[Path]) -> tuple[Statement, ...]:
    """Returns what the files of Hugging Face and timm in some folders say, in the order in which it counts."""
    found = []
    for path in (folder / name for name in (HUGGING_FACE, TIMM) for folder in folders):
        if not path.is_file():
            continue
        try:
            plain = read_object(path)
        except InputError as error:
            found.append(Statement(origin=str(path), says=str(error), fit=_refuse(error)))
            continue
        fit = _reader_of(plain)
        if fit is not None:
            found.append(Statement(origin=str(path), says=plain, fit=fit))
    return tuple(found)


def _refuse(error: InputError) -> Callable[[Preprocessing], Preprocessing]:
    def fit(_network: Preprocessing) -> Preprocessing:
        raise error

    return fit


def record_statements(statements: Sequence[Statement]) -> dict[str, Any]:
    """Returns what a manifest's parameters say of statements; nothing where there are none."""
    return {"preprocessing": [statement.says for statement in statements]} if statements else {}


def settle_preprocessing(statements: Sequence[Statement], inputs: Sequence[TensorSpec]) -> Settled:
    """Decides how a network wants its images: the first statement that makes sense for its input.

    A statement that was asked for makes sense, or is an error; one that was found is passed over with a note.

    Raises:
        UsageError: a statement was asked for, and the network does not take one image, or the statement does not fit.
        InputError: the values of that statement make no sense.
    """
    asked = any(statement.asked for statement in statements)
    try:
        network = plain_input(inputs)
    except GraphError as error:
        if asked:
            raise UsageError(f"{statements[0].origin}: {error}") from error
        return Settled()
    settled, notes = Settled(), []
    for statement in statements:
        try:
            found = statement.fit(network)
            found.check_dtype(inputs[0].dtype)
        except (InputError, UsageError, TypeError, ValueError) as error:  # files of others may hold anything
            if statement.asked:
                kind = InputError if isinstance(error, InputError) else UsageError
                raise kind(f"{statement.origin}: {error}") from error
            notes.append(f"note: {statement.origin} is not used: {error}. Say it yourself with {FLAG}")
            continue
        if settled.preprocessing is None:
            settled = Settled(preprocessing=found, origin=statement.origin)
            notes.append(f"images, as {statement.origin} says: {found.describe()}")
        elif found != settled.preprocessing:
            notes.append(f"note: {statement.origin} says otherwise, and does not count: {found.describe()}")
    if settled.preprocessing is None and inputs[0].dtype.startswith("float"):
        notes.append(
            "note: nothing says how the network wants its images; the mean and spread of your data will be assumed. "
            f"If you know better: {FLAG} {_names().replace(', ', '|')}, or a JSON file"
        )
    return replace(settled, notes=tuple(notes))


def plain_input(inputs: Sequence[TensorSpec]) -> Preprocessing:
    """Returns the plain preprocessing of a network's only input.

    Raises:
        GraphError: it takes something else than one image.
    """
    if len(inputs) != 1:
        described = ", ".join(f"{spec.name} {spec.dtype} {spec.row_shape}" for spec in inputs)
        raise GraphError(f"the network does not take one image but {described}")
    return plain_preprocessing(inputs[0].row_shape, name=inputs[0].name, dtype=inputs[0].dtype)
