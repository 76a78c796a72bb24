"""Masks of imported networks: which of the tensors that a cut carries tells tokens from what fills a row up, and how.

An exported encoder may carry its mask as it came in, as truth values, or as what it adds to attention scores; with one
row of keys or one for every query. So the network is run on rows whose mask is known, and each carried tensor is looked
at: it is the mask if it has one value at all tokens and another one everywhere else.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from artifacts import Cut, Model, TensorSpec, name_token_inputs
from export.graphs.files import load_graph_file
from export.graphs.probing import open_graph
from export.nets.token_heads import MaskTensor

_ROWS = 3


def find_mask(model: Model, cut: Cut) -> MaskTensor | None:
    """Returns the mask among the tensors that a cut carries; ``None``: none of them is one.

    Args:
        model: the model folder.
        cut: one of its cuts, with token features (S, F).
    """
    named = name_token_inputs([spec.name for spec in model.spec.full.inputs])
    size = cut.main.row_shape[0]
    fitting = [spec for spec in cut.carried if spec.row_shape and spec.row_shape[-1] == size]
    if named is None or "mask" not in named or not fitting:
        return None
    kept = _draw_lengths(size)
    values = _run(model, named["mask"], kept, [spec.name for spec in fitting])
    return next((mask for spec in fitting if (mask := _read(spec, values[spec.name], kept)) is not None), None)


def _draw_lengths(size: int) -> np.ndarray:
    """Returns (3, S) bool: rows of other numbers of tokens."""
    lengths = np.array([1, max(1, size // 2), size])
    kept: np.ndarray = np.arange(size) < lengths[:, None]
    return kept


def _run(model: Model, mask: str, kept: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    inputs = {
        spec.name: kept.astype(spec.dtype) if spec.name == mask else np.ones((_ROWS, *spec.row_shape), spec.dtype)
        for spec in model.spec.full.inputs
    }
    read = {name: inputs[name] for name in names if name in inputs}
    made = [name for name in names if name not in inputs]
    if made:
        graph = load_graph_file(model.path(model.spec.full))
        values = ir.convenience.create_value_mapping(graph.graph, include_subgraphs=False)
        graph.graph.outputs[:] = [values[name] for name in made]
        with open_graph(graph) as runner:
            read.update(runner.run(inputs))
    return read


def _read(spec: TensorSpec, values: np.ndarray, kept: np.ndarray) -> MaskTensor | None:
    rows = values.astype(np.float64)
    for _ in range(rows.ndim - 2):
        rows = rows[:, 0]
    if rows.shape != kept.shape:
        return None
    at, off = np.unique(rows[kept]), np.unique(rows[~kept])
    if len(at) != 1 or len(off) != 1 or at[0] == off[0]:
        return None
    limit = float((max(at[0], -1e9) + max(off[0], -1e9)) / 2)
    return MaskTensor(
        name=spec.name, row_shape=spec.row_shape, dtype=spec.dtype, limit=limit, below=bool(at[0] < off[0])
    )  # fmt: skip
