"""A small imported network with many cuts, and images of bars for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from artifacts import Model, RunFolder
from calibration.data.arrays import ArrayImages, make_samples
from calibration.data.splits import split_indices
from calibration.tracing.all_exits import EngineChoice
from export import ExportOptions, ensure_model
from tests.export.export_graphs import GraphBuilder

ENGINE = EngineChoice(backend="onnxruntime", threads=1)


def write_chain(path: Path, layers: int = 8) -> Path:
    """Writes convolutions 3x3 on 8x8 images of one channel, global averages, and logits of two classes."""
    g = GraphBuilder()
    x = g.input("images", 1, 8, 8)
    for layer in range(layers):
        x = g.add("Conv", x, g.weight(12, 12 if layer else 1, 3, 3), pads=[1, 1, 1, 1])
        x = g.add("Relu", x, output=f"layer{layer}")
    flat = g.add("Flatten", g.add("GlobalAveragePool", x))
    g.add("MatMul", flat, g.weight(12, 2), output="logits")
    return g.save(path, "logits")


def export_chain(root: Path, layers: int = 8) -> tuple[RunFolder, Model]:
    """Returns a run with such a network in it, cut, without heads."""
    run = RunFolder(root=root / "run")
    return run, ensure_model(run, ExportOptions(source=str(write_chain(root / "chain.onnx", layers))))


def draw_bars(count: int = 320, *, labelled: bool = True) -> ArrayImages:
    """Returns upright against lying bars in noise, in three parts."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 60, (count, 1, 8, 8)).astype(np.uint8)
    for row, label in enumerate(labels):
        place = random.integers(1, 7)
        images[row, 0, place, :] = 255 if label else images[row, 0, place, :]
        images[row, 0, :, place] = images[row, 0, :, place] if label else 255
    parts = split_indices(labels, {"train": 0.6, "calibrate": 0.2, "test": 0.2}, seed=0)
    classes = ("upright", "lying") if labelled else ()
    return make_samples("bars", images, labels if labelled else None, classes, parts)
