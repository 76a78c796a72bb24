"""A network in a file and its data in another, as a user has them, for tests of commands that begin there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE, CLASSES, SAMPLES = (1, 8, 8), 3, 360
QUICK = ("--threads", "1", "--rounds", "3", "--contenders", "1", "--batch-size", "4", "--head-share", "1",
         "--epochs", "1")  # fmt: skip


def write_dense_file(folder: Path, name: str = "dense.onnx", *, end: int = 24) -> Path:
    """Writes three dense layers of random weights and a final one; ``end``: how wide the third is."""
    from tests.export.export_graphs import GraphBuilder

    graph = GraphBuilder()
    value = graph.add("Flatten", graph.input("x", *SHAPE))
    for width, following in ((64, 24), (24, 24), (24, end)):
        value = graph.add("Relu", graph.add("MatMul", value, graph.weight(width, following)))
    return graph.save(folder / name, graph.add("MatMul", value, graph.weight(end, CLASSES), output="logits"))


def write_right_data(network: Path, target: Path, *, labelled: bool = True) -> Path:
    """Writes images and, as labels, what the network answers to them once they are normalised by their own numbers."""
    images = np.random.default_rng(0).integers(0, 256, (SAMPLES, *SHAPE)).astype(np.uint8)
    if not labelled:
        np.savez(target, images=images)
        return target
    return write_labels(network, images, target, scale=1 / images.std(), shift=images.mean() / images.std())


def write_labels(network: Path, images: np.ndarray, target: Path, *, scale: float, shift: float = 0.0) -> Path:
    """Writes images and, as labels, what the network answers to ``images * scale - shift``."""
    from engines import GraphRunner

    with GraphRunner(network) as runner:
        answers = runner.run({"x": (images * scale - shift).astype(np.float32)})["logits"]
    np.savez(target, images=images, labels=answers.argmax(1))
    return target


def write_conv_file(folder: Path, name: str = "conv.onnx") -> Path:
    """Writes four convolutions of random weights, two of them beside a shortcut, and a final layer."""
    from tests.export.export_graphs import GraphBuilder

    graph = GraphBuilder()
    value = graph.input("x", *SHAPE)
    for width, following in ((1, 12), (12, 12)):
        made = graph.add("Conv", value, graph.weight(following, width, 3, 3), graph.weight(following), pads=[1] * 4)
        value = graph.add("Relu", made)
    for _ in range(2):
        made = graph.add("Conv", value, graph.weight(12, 12, 3, 3), graph.weight(12), pads=[1] * 4)
        value = graph.add("Relu", graph.add("Add", made, value))
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    return graph.save(folder / name, graph.add("MatMul", pooled, graph.weight(12, CLASSES), output="logits"))
