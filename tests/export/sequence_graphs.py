"""Small encoders whose rows have several lengths, for the tests of all rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from artifacts import array_digest
from engines import GraphRunner
from export import ExportOptions

LENGTHS = (4, 8, 16)
WIDTH, HEADS, TOKENS, CLASSES = 16, 2, 11, 3


def write_sequence_encoder(
    builder: Any, path: Path, *, layers: int = 3, masked: bool = True, shared: bool = True
) -> Path:
    """Token ids -> embeddings with positions -> layers of masked attention -> logits of the first token.

    Args:
        builder: makes a ``GraphBuilder``.
        path: the file.
        layers: how many.
        masked: False leaves the mask out of the attention, so that padding shows in the answers.
        shared: read the shape of the input once, so that it crosses every cut; otherwise every layer reads its own.
    """
    g = builder()
    ids = g.input("input_ids", "tokens", dtype=onnx.TensorProto.INT64)
    mask = g.input("attention_mask", "tokens", dtype=onnx.TensorProto.INT64)
    length = g.add("Shape", ids, start=1, end=2, output="length_of_rows")
    places = g.add(
        "Slice", g.weight(LENGTHS[-1] + 4, WIDTH), g.constant(np.array([0])), length, g.constant(np.array([0]))
    )
    hidden = g.add("Add", g.add("Gather", g.weight(TOKENS, WIDTH), ids), places)
    hidden = g.add("MatMul", hidden, g.weight(WIDTH, WIDTH))
    kept = g.add("Cast", mask, to=onnx.TensorProto.FLOAT)
    dark = g.add("Mul", g.add("Sub", g.constant(np.float32(1)), kept), g.constant(np.float32(-10000)))
    bias = g.add("Unsqueeze", dark, g.constant(np.array([1, 2])), output="bias")
    for layer in range(layers):
        own = length if shared else g.add("Shape", hidden, start=1, end=2)
        heads = g.add("Concat", g.constant(np.array([-1])), own, g.constant(np.array([HEADS, WIDTH // HEADS])), axis=0)
        query, key, value = (
            g.add(
                "Transpose", g.add("Reshape", g.add("MatMul", hidden, g.weight(WIDTH, WIDTH)), heads), perm=[0, 2, 1, 3]
            )
            for _ in range(3)
        )
        scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = g.add("Add", scores, bias) if masked else scores
        mixed = g.add("Transpose", g.add("MatMul", g.add("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
        joined = g.add("Concat", g.constant(np.array([-1])), own, g.constant(np.array([WIDTH])), axis=0)
        mixed = g.add("MatMul", g.add("Reshape", mixed, joined), g.weight(WIDTH, WIDTH))
        hidden = g.add("Add", hidden, mixed, output=f"hidden{layer}")
    first = g.add("Gather", hidden, g.constant(np.array(0)), axis=1)
    g.add("MatMul", first, g.weight(WIDTH, CLASSES), output="logits")
    return g.save(path, "logits")


def sequence_options(path: Path, **settings: Any) -> ExportOptions:
    """Returns the options of an export with the lengths of these tests."""
    return ExportOptions(**{"source": str(path), "lengths": LENGTHS, **settings})


def draw_sequences(counts: list[int], *, columns: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws rows of given lengths, padded with token 0 and mask 0 to the longest or to ``columns``."""
    random = np.random.default_rng(seed)
    width = columns or max(counts)
    ids, mask = np.zeros((2, len(counts), width), np.int64)
    for row, count in enumerate(counts):
        ids[row, :count] = random.integers(1, TOKENS, count)
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask}


class SequenceSamples:
    """Rows of random lengths, short ones more often, with what a network answers as their labels.

    Inputs come padded to the longest row of those that are asked for.
    """

    name = "sequences"
    labelled = True

    def __init__(self, network: Path, *, count: int = 600) -> None:
        random = np.random.default_rng(5)
        self._counts = np.minimum(1 + random.geometric(0.18, count), LENGTHS[-1])
        self._rows = draw_sequences(self._counts.tolist(), columns=LENGTHS[-1], seed=6)
        with GraphRunner(network) as runner:
            self._labels = runner.run(self._rows)["logits"].argmax(axis=1)
        ends = (count // 3, 2 * count // 3)
        self._parts = dict(zip(("train", "calibrate", "test"), np.split(np.arange(count), ends), strict=True))

    def indices_of(self, part: str, /) -> np.ndarray:
        return self._parts[part]

    def inputs(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        longest = int(self._counts[indices].max())
        return {name: array[indices, :longest] for name, array in self._rows.items()}

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        return self._labels[indices]

    def digests(self) -> dict[str, str]:
        parts = {f"indices.{part}": array_digest(indices) for part, indices in self._parts.items()}
        return {"images": array_digest(self._rows["input_ids"]), "labels": array_digest(self._labels), **parts}
