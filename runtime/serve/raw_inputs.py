"""Raw inputs: pictures and texts as clients have them, made into what a bundle's network takes.

Possible where the bundle knows its preprocessing. Calibration and the benchmark make pixels and tokens by the same
functions, so that they are the same here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from artifacts import BundleSpec, InputError, TextEncoder, TextRow, image_size
from runtime.oip.calls import InferCall, InputTensor
from runtime.oip.datatypes import BYTES, datatype_of, from_binary
from runtime.preprocess import prepare_images

TEXT_INPUT = "text"
_MILLION = 1_000_000
_PAIR = 2


class RawInputs:
    """What a bundle takes raw.

    Args:
        spec: the bundle.
        tokenizer: the content of its tokenizer.json, for texts.
        image_mpx: millions of pixels that a picture may have.

    Raises:
        InputError, MissingExtraError: the tokenizer cannot be opened.
    """

    def __init__(self, spec: BundleSpec, tokenizer: bytes | None, *, image_mpx: float) -> None:
        self._spec = spec
        self._most_pixels = image_mpx * _MILLION
        self._images = spec.preprocessing is not None and len(spec.inputs) == 1
        self._encoder: TextEncoder | None = None
        if spec.text is not None and tokenizer is not None:
            self._encoder = TextEncoder(tokenizer, spec.text, spec.inputs)

    def describe(self) -> str | None:
        """Returns what may be sent raw, for a model's configuration; ``None``: nothing."""
        if self._images:
            name = self._spec.inputs[0].name
            return f"{name}: BYTES [n], files of pictures, or UINT8 [n, height, width, channels], pixels in RGB"
        if self._encoder is not None:
            return f"{TEXT_INPUT}: BYTES [n], texts in UTF-8, or [n, 2], pairs of texts"
        return None

    def wanted_by(self, call: InferCall) -> bool:
        """Returns whether a call sends something raw."""
        tensor = call.inputs[0]
        if len(call.inputs) > 1:
            return False
        if not tensor.name:
            return True
        if self._images and tensor.name == self._spec.inputs[0].name:
            own = self._spec.inputs[0]
            pixels = tensor.datatype == "UINT8" and (own.dtype != "uint8" or tensor.values.shape[1:] != own.row_shape)
            return tensor.datatype == BYTES or pixels
        return self._encoder is not None and tensor.name == TEXT_INPUT

    def prepare(self, call: InferCall, most_rows: int) -> Mapping[str, np.ndarray]:
        """Returns the network's inputs of a call that sends something raw. Takes long; belongs into another thread.

        Raises:
            InputError: a picture or a text cannot be read, is too large, or there are too many.
        """
        tensor = call.inputs[0]
        if not self._images and self._encoder is None:
            return self._as_one_row(tensor)
        if tensor.values.ndim < 1 or len(tensor.values) > most_rows:
            raise InputError(
                f"input '{tensor.name}': shape {list(tensor.values.shape)}: expected 1 to {most_rows} rows"
            )
        if self._encoder is not None:
            return dict(self._encoder.encode(_texts_of(tensor)).inputs)
        return {self._spec.inputs[0].name: prepare_images(self._pictures_of(tensor), self._spec)}

    def _pictures_of(self, tensor: InputTensor) -> Sequence[bytes | np.ndarray]:
        if tensor.datatype != BYTES:
            return list(np.ascontiguousarray(tensor.values))
        pictures = _strings_of(tensor)
        for place, picture in enumerate(pictures):
            width, height = image_size(picture)
            if width * height > self._most_pixels:
                raise InputError(
                    f"picture {place} has {width} x {height} pixels; at most {self._most_pixels / _MILLION:g} million "
                    "are allowed. Send a smaller one, or raise --max-image-mpx"
                )
        return pictures

    def _as_one_row(self, tensor: InputTensor) -> Mapping[str, np.ndarray]:
        """Returns the bytes of a body without a JSON head as the only row of the only input."""
        own = self._spec.inputs
        if len(own) > 1:
            raise InputError(f"a body of bytes alone is one input, and this model takes {len(own)}; begin it with JSON")
        shape = (1, *own[0].row_shape)
        data = memoryview(tensor.values[0])
        return {own[0].name: from_binary(own[0].name, datatype_of(own[0].dtype), shape, data)}


def _strings_of(tensor: InputTensor) -> list[bytes]:
    if tensor.values.ndim == 1 or tensor.values.shape[1:] == (1,):
        return list(tensor.values.reshape(-1))
    raise InputError(f"input '{tensor.name}': shape {list(tensor.values.shape)}: expected [n] or [n, 1] for BYTES")


def _texts_of(tensor: InputTensor) -> list[TextRow]:
    if tensor.datatype != BYTES:
        raise InputError(f"input '{tensor.name}': expected BYTES, texts in UTF-8, got {tensor.datatype}")
    try:
        if tensor.values.shape[1:] == (_PAIR,):
            return [(first.decode(), second.decode()) for first, second in tensor.values]
        return [text.decode() for text in _strings_of(tensor)]
    except UnicodeDecodeError as error:
        raise InputError(f"input '{tensor.name}': a text is not in UTF-8 ({error})") from error
