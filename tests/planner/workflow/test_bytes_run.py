"""A network that takes bytes, from its file to the benchmark: calibration, planner, runtime and bench follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, BundleSpec, RunFolder, open_model, read_json
from tests.planner.dense_worlds import QUICK

pytestmark = pytest.mark.slow


def test_a_host_sends_bytes_and_gets_the_answers_of_the_floats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "onnx", "onnxruntime", "PIL"):
        pytest.importorskip(name, reason="trains exit heads: pip install 'pame[train,onnxruntime]'")
    from calibration import load_run_data
    from calibration.cli import main as calibrate
    from engines import run_graph
    from export.cli import main as export
    from planner.commands.main import main as plan
    from runtime import Runtime, prepare_images
    from runtime.bench.command import main as bench

    path, images = write_quadrants(tmp_path)
    run, floats = RunFolder(root=tmp_path / "run"), RunFolder(root=tmp_path / "floats")
    words = [str(path), "--segments", "--preprocess", "imagenet"]
    assert export([*words, "--run", str(floats.root)]) == 0
    assert export([*words, "--input", "uint8", "--run", str(run.root)]) == 0
    data = ["--data", str(tmp_path / "data.npz"), "--epochs", "2", "--train-batch-size", "16", "--threads", "1"]
    assert calibrate(["--run", str(run.root), *data]) == 0
    assert "inside the network" in capsys.readouterr().err
    assert plan(["--run", str(run.root), "--tolerance", "0.9", *QUICK]) == 0
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert (spec.inputs[0].dtype, spec.preprocessing) == ("uint8", open_model(run.model, remedy="").spec.preprocessing)

    samples, reference = load_run_data(run), open_model(floats.model, remedy="")
    rows = samples.indices_of("test")
    pictures = images[rows].transpose(0, 2, 3, 1)
    with Runtime.load(run.bundle) as runtime:
        batch = prepare_images(pictures, runtime.spec)
        assert np.array_equal(batch, samples.inputs(rows)["image"])
        found = runtime.run(batch)
    whole = reference.spec.preprocessing.prepare(images[rows], "float32")
    expected = run_graph(reference.path(reference.spec.full), {"image": whole})["logits"]
    stayed = found.exit_index == runtime.stage_count - 1
    np.testing.assert_allclose(found.outputs[stayed], expected[stayed], atol=1e-4)
    early = found.outputs[~stayed].argmax(axis=1) == samples.targets(rows)[~stayed]
    assert early.mean() > 0.5 if len(early) else stayed.all()
    if spec.plan.exits:
        assert bench(["--run", str(run.root), "--rounds", "2"]) == 0


def write_quadrants(folder: Path) -> tuple[Path, Any]:
    """Writes a convolutional network that finds the brightest quadrant of a picture, and pictures with labels."""
    from tests.export.export_graphs import GraphBuilder

    random = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = random.integers(0, 120, (400, 3, 8, 8))
    for row, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, :, top : top + 4, left : left + 4] += 100
    images = images.astype(np.uint8)
    np.savez(folder / "data.npz", images=images, labels=labels)
    g = GraphBuilder()
    kernels = np.zeros((4, 3, 1, 1), np.float32)
    kernels[:3] = np.eye(3)[:, :, None, None]
    shift = np.full(4, 5, np.float32)
    x = g.add("Relu", g.add("Conv", g.input("image", 3, 8, 8), g.constant(kernels), g.constant(shift)), output="a")
    x = g.add("Conv", x, g.constant(np.eye(4, dtype=np.float32)[:, :, None, None]))
    x = g.add("Relu", x, output="b")
    quadrants = np.zeros((4, 8, 8, 4), np.float32)
    for label in range(4):
        top, left = 4 * (label // 2), 4 * (label % 2)
        quadrants[:3, top : top + 4, left : left + 4, label] = 0.2
    g.add("MatMul", g.add("Flatten", x), g.constant(quadrants.reshape(-1, 4)), output="logits")
    return g.save(folder / "net.onnx", "logits"), images
