"""TextEncoder: the way from strings to rows of token ids, by the network's own tokenizer (the ``tokenizers`` library).

Calibration, the benchmark and a host all go through it, so that a text becomes the same numbers everywhere. It works
in the thread that calls it and starts none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import InputError, MissingExtraError
from artifacts.graphs import TensorSpec
from artifacts.text.preprocessing import TextPreprocessing

CHARACTERS_PER_TOKEN = 100
"""A text is cut at this many characters per token before it is tokenised: so work on one text is bounded."""

TextRow = str | tuple[str, str]
"""A text, or a pair of texts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedTexts:
    """Texts as a network takes them.

    Attributes:
        inputs: input name -> (n, length).
        cut: (n,) bool, which texts were longer than the network takes and were cut.
    """

    inputs: Mapping[str, np.ndarray]
    cut: np.ndarray


class TextEncoder:
    """A tokenizer with what a network wants of it. Thread-safe."""

    def __init__(self, file: Path | bytes, wanted: TextPreprocessing, inputs: Sequence[TensorSpec]) -> None:
        """Reads the tokenizer.

        Args:
            file: a ``tokenizer.json``, or its content.
            wanted: how the network wants its texts.
            inputs: of the network.

        Raises:
            MissingExtraError: the ``tokenizers`` library is not installed.
            InputError: the file is no tokenizer, or one that fills up in front.
        """
        tokenizer = open_tokenizer(file)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=wanted.length)
        self.wanted = wanted
        self._tokenizer = tokenizer
        self._types = {spec.name: np.dtype(spec.dtype) for spec in inputs}

    def encode(self, texts: Sequence[TextRow]) -> EncodedTexts:
        """Returns the rows of some texts, in their order.

        Raises:
            InputError: one is neither a string nor a pair of strings; with its place.
        """
        wanted, count = self.wanted, len(texts)
        ids = np.full((count, wanted.length), wanted.pad_id, np.int64)
        mask, types = np.zeros((2, count, wanted.length), np.int64)
        cut = np.zeros(count, bool)
        for place, text in enumerate(texts):
            first, second, was_cut = self._bound(text, place)
            found = self._tokenizer.encode(first, second)
            tokens = len(found.ids)
            ids[place, :tokens], types[place, :tokens], mask[place, :tokens] = found.ids, found.type_ids, 1
            cut[place] = was_cut or bool(found.overflowing)
        made = {wanted.ids: ids, wanted.mask: mask, wanted.types: types}
        inputs = {name: array.astype(self._types[name], copy=False) for name, array in made.items() if name is not None}
        return EncodedTexts(inputs=inputs, cut=cut)

    def _bound(self, text: object, place: int) -> tuple[str, str | None, bool]:
        """Returns a text, the second of a pair, and whether one of them was cut."""
        pair = text if isinstance(text, (tuple, list)) else (text,)
        if not 1 <= len(pair) <= 2 or not all(isinstance(part, str) for part in pair):
            raise InputError(f"text {place}: expected a string or a pair of strings, got {_describe(text)}")
        most = self.wanted.length * CHARACTERS_PER_TOKEN
        first, second = pair[0][:most], pair[1][:most] if len(pair) == 2 else None
        return first, second, any(len(part) > most for part in pair)


def open_tokenizer(file: Path | bytes) -> Any:
    """Opens a ``tokenizer.json``, or its content; errors as ``TextEncoder``."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError("tokenizers", "text") from error
    name = "the tokenizer" if isinstance(file, bytes) else str(file)
    if isinstance(file, Path) and not file.is_file():
        raise InputError(f"{file}: there is no such tokenizer; it is the tokenizer.json beside a network's weights")
    try:
        return Tokenizer.from_buffer(file if isinstance(file, bytes) else file.read_bytes())
    except Exception as error:  # the library raises plain Exception for every fault of a file
        raise InputError(f"{name} cannot be read as a tokenizer ({error}); expected a tokenizer.json") from error


def _describe(text: object) -> str:
    if isinstance(text, (tuple, list)):
        return f"{type(text).__name__} of {', '.join(type(part).__name__ for part in text) or 'nothing'}"
    return type(text).__name__
