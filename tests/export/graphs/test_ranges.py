"""Tests of ranges: rows are proven independent over the range of real images, not only on noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import GraphError, Preprocessing, RunFolder, open_model
from export.cli import main
from export.graphs.loading import LoadedGraph, load_graph
from export.graphs.probing import draw_rows, probe_tensors, settle_integers
from export.graphs.ranges import draw_images

IMAGE = onnx.TensorProto


def write_guesser(graph: Any, path: Path, *, dtype: int = IMAGE.FLOAT, above: float = 1.0) -> Path:
    """Writes a network that divides all images by 255 if the brightest pixel of the batch is above a limit."""
    g = graph()
    x = g.input("image", 3, 8, 8, dtype=dtype)
    x = x if dtype == IMAGE.FLOAT else g.add("Cast", x, to=IMAGE.FLOAT)
    brightest = g.add("ReduceMax", x, keepdims=0)
    factor = g.add(
        "Where", g.add("Greater", brightest, g.constant(np.float32(above))), g.constant(np.float32(1 / 255)),
        g.constant(np.float32(1)),
    )  # fmt: skip
    x = g.add("Relu", g.add("Conv", g.add("Mul", x, factor), g.weight(4, 3, 3, 3), strides=[2, 2]), output="early")
    x = g.add("Flatten", g.add("Relu", g.add("Conv", x, g.weight(6, 4, 3, 3))))
    g.add("MatMul", x, g.weight(6, 5), output="logits")
    return g.save(path, "logits")


def test_a_network_that_looks_at_the_whole_batch_of_real_images_is_refused(
    graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_guesser(graph, tmp_path / "guesser.onnx", above=10.0)
    words = [str(path), "--segments", "--run", str(tmp_path / "run")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "output 'logits' mixes rows" in said
    assert "(on pixels from 0 to 255; if the network takes others, say so with --preprocess)" in said
    assert main([*words, "--preprocess", "raw"]) == 1
    assert "mixes rows: row 0" in capsys.readouterr().err, "the dark image of three"
    assert main([*words, "--preprocess", "unit"]) == 0, "no pixel of 0 to 1 is above 10"


def test_bytes_are_run_dark_and_bright(graph: Any, tmp_path: Path) -> None:
    for kind in (IMAGE.UINT8, IMAGE.INT32):
        loaded = load_graph(write_guesser(graph, tmp_path / "bytes.onnx", dtype=kind, above=100.0))
        rows = draw_rows(replace(loaded, pixels=Preprocessing(height=8, width=8, scale=1.0)), 5)["image"]
        assert rows.dtype == loaded.inputs[0].dtype
        assert rows[0].max() < 5 < 100 < rows[1:].max()
        with pytest.raises(GraphError, match="mixes rows: row 0"):
            probe_tensors(replace(loaded, highest=255, pixels=Preprocessing(height=8, width=8, scale=1.0)), ())


def test_bytes_that_are_no_image_have_ranges_of_their_own(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("Cast", g.input("bytes", 40, dtype=IMAGE.UINT8), to=IMAGE.FLOAT)
    x = g.add("Div", x, g.add("ReduceMax", x, keepdims=0))
    g.add("MatMul", g.add("Relu", g.add("MatMul", x, g.weight(40, 8))), g.weight(8, 3), output="logits")
    loaded = settle_integers(load_graph(g.save(tmp_path / "n.onnx", "logits")))
    with pytest.raises(GraphError, match="mixes rows"):
        probe_tensors(replace(loaded, highest=255), ())
    rows = draw_rows(replace(loaded, highest=255), 3)["bytes"]
    assert [int(row.max()) // 64 for row in rows] == [3, 0, 1]


def test_sound_byte_networks_are_settled_as_images(graph: Any, tmp_path: Path) -> None:
    g = graph()
    x = g.add("Cast", g.input("image", 8, 8, 3, dtype=IMAGE.INT32), to=IMAGE.FLOAT)
    x = g.add("Transpose", g.add("Div", x, g.constant(np.float32(255))), perm=[0, 3, 1, 2])
    x = g.add("Relu", g.add("Conv", x, g.weight(4, 3, 3, 3), strides=[2, 2]))
    g.add("MatMul", g.add("Flatten", g.add("Conv", x, g.weight(6, 4, 3, 3))), g.weight(6, 5), output="logits")
    path = g.save(tmp_path / "n.onnx", "logits")
    loaded: LoadedGraph = settle_integers(load_graph(path))
    assert loaded.pixels == Preprocessing(height=8, width=8, scale=1.0, layout="NHWC")
    assert main([str(path), "--segments", "--run", str(tmp_path / "run")]) == 0
    assert open_model(RunFolder(root=tmp_path / "run").model, remedy="").spec.preprocessing is None


def test_images_span_the_range() -> None:
    drawn = draw_images(np.random.default_rng(0), (6, 3, 16, 16))
    assert drawn.dtype == np.uint8
    assert drawn[0].max() <= 3
    assert len(np.unique(drawn[0])) > 1
    assert (drawn[1].min() < 40, drawn[1].max() > 200, drawn[2].max()) == (True, True, 255)
    assert len({float(image.mean()) for image in drawn}) == 6
    assert draw_images(np.random.default_rng(0), (1, 4)).shape == (1, 4)
