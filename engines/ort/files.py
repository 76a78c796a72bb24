"""Names of the files in an ONNX Runtime engine, for the builder that writes them and the opening that reads them."""

from __future__ import annotations


def graph_file(size: int | None) -> str:
    """Returns the optimised graph's file: for one batch size, or for any (``None``)."""
    return f"{_stem(size)}.onnx"


def weights_file(size: int | None) -> str:
    """Returns the file of the graph's weights; tiny graphs have none."""
    return f"{_stem(size)}.bin"


def _stem(size: int | None) -> str:
    return "graph" if size is None else f"graph_b{size}"
