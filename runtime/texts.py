"""Texts for hosts: strings become the batch that a bundle's network wants. Needs numpy and the ``tokenizers`` library.

The tokens are those that calibration and the benchmark made of the same texts: all go through
``artifacts.TextEncoder``.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np

from artifacts import InputError, TextEncoder, TextRow, UsageError
from runtime.runtime import Runtime

TOO_LONG = ("cut", "refuse")
_encoders: WeakKeyDictionary[Runtime, TextEncoder] = WeakKeyDictionary()  # a tokenizer is read once per runtime


def prepare_texts(
    texts: TextRow | Iterable[TextRow], runtime: Runtime, *, too_long: str = TOO_LONG[0]
) -> dict[str, np.ndarray]:
    """Returns the batch for ``Runtime.run``: one row per text, in their order.

    Args:
        texts: one string or several; for a network of pairs, pairs as tuples: two strings in a tuple are one pair, and
            in a list two texts.
        runtime: of the bundle whose tokenizer counts.
        too_long: ``cut`` leaves out what is behind ``runtime.spec.text.length`` tokens, as calibration did; ``refuse``
            raises an error.

    Returns:
        Input name -> (N, length) in the types of the network's inputs.

    Raises:
        UsageError: the bundle's network takes no texts.
        InputError: one is neither a string nor a pair of strings, or too long and to be refused; with its place.
        MissingExtraError: the ``tokenizers`` library is not installed.
    """
    if too_long not in TOO_LONG:
        raise UsageError(f"too_long '{too_long}': expected one of {', '.join(TOO_LONG)}")
    spec = runtime.spec
    if spec.text is None or runtime.tokenizer is None:
        raise UsageError(
            f"bundle '{spec.name}' does not say how its network wants texts. Export the network with --tokenizer "
            "FILE and plan again, or prepare the batch yourself"
        )
    rows: list[TextRow] = [texts] if isinstance(texts, str) or _is_pair(texts) else list(texts)  # type: ignore[list-item]
    if not rows:
        raise InputError("there are no texts; pass at least one")
    encoder = _encoders.get(runtime)
    if encoder is None:
        encoder = _encoders[runtime] = TextEncoder(runtime.tokenizer, spec.text, spec.inputs)
    encoded = encoder.encode(rows)
    if too_long == "refuse" and encoded.cut.any():
        raise InputError(
            f"text {int(encoded.cut.argmax())} is longer than {spec.text.length} tokens, which the network takes at "
            "most; shorten it, or let it be cut with too_long='cut'"
        )
    return dict(encoded.inputs)


def _is_pair(texts: object) -> bool:
    return isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(text, str) for text in texts)
