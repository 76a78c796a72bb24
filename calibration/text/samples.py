"""TextSamples: texts with labels or without, tokenised when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import TextEncoder, TextRow, array_digest, unknown_name
from calibration.data.samples import PARTS, check_parts, labels_missing
from calibration.text.store import TextStore

_LOOKED_AT = 2_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextSamples:
    """Texts, or pairs of them; an implementation of ``Samples``.

    Attributes:
        name: for messages and records.
        texts: all of them.
        labels: (N,) int64, positions in ``classes``, or float32 numbers of a regression; ``None`` without.
        classes: class names; none without labels, or where these are numbers.
        parts: part -> ascending indices, int64; pairwise disjoint.
        encoder: the way from a text to the network's inputs.
        split_seed: what decided about the parts; ``None`` where the data came with them.
    """

    name: str
    texts: TextStore
    labels: np.ndarray | None
    classes: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    encoder: TextEncoder
    split_seed: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts, count=len(self.texts))

    @property
    def labelled(self) -> bool:
        """Whether the right answers are given."""
        return self.labels is not None

    def indices_of(self, part: str, /) -> np.ndarray:
        """Returns the indices of a part."""
        if part not in self.parts:
            raise unknown_name("part of the data", part, PARTS)
        return self.parts[part]

    def rows(self, indices: np.ndarray, /) -> list[TextRow]:
        """Returns some texts, or pairs of them."""
        read = [self.texts.read(index) for index in indices.tolist()]
        return [row[0] if len(row) == 1 else (row[0], row[1]) for row in read]

    def inputs(self, indices: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's inputs for some texts: input name -> (n, length)."""
        return self.encoder.encode(self.rows(indices)).inputs

    def trim(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Returns inputs without the columns behind their longest text, on which no answer depends where a mask says
        so; without a mask all."""
        mask = self.encoder.wanted.mask
        if mask is None:
            return dict(inputs)
        longest = int(np.flatnonzero(inputs[mask].any(axis=0))[-1]) + 1
        return {name: array[:, :longest] for name, array in inputs.items()}

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns the labels (n,) of some texts.

        Raises:
            UsageError: there are none.
        """
        if self.labels is None:
            raise labels_missing(self.name)
        found: np.ndarray = self.labels[indices]
        return found

    def digests(self) -> dict[str, str]:
        """Returns the digests of the texts, the labels (if there are any) and the index set of each part."""
        parts = {f"indices.{part}": array_digest(self.parts[part]) for part in PARTS}
        labels = {} if self.labels is None else {"labels": array_digest(self.labels)}
        return {"images": self.texts.digest(), **labels, **parts}

    def count_cut(self) -> tuple[int, int]:
        """Returns how many of the texts are longer than the network takes, and how many were looked at."""
        asked = np.unique(np.linspace(0, len(self.texts) - 1, min(_LOOKED_AT, len(self.texts))).astype(np.int64))
        return int(self.encoder.encode(self.rows(asked)).cut.sum()), len(asked)
