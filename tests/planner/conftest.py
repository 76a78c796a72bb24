"""Lets the planner's tests import the modules beside them (tests are no package and are never shipped); a real run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import RunFolder


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with model and data, see ``dense_worlds``."""
    for name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
        pytest.importorskip(name, reason="traces and merges a network: pip install 'pame[train]'")
    from tests.planner.dense_worlds import write_dense_run

    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "small")
    write_dense_run(run)
    return run


@pytest.fixture
def run(made_run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(made_run.root, tmp_path / "small")
    return RunFolder(root=tmp_path / "small")


@pytest.fixture
def heavy_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last segment took nearly all of the time, in the matrix and in the measurement of the plans."""
    import planner.workflow.inputs

    ensure = planner.workflow.inputs.ensure_itm

    def timed(*args: object, **options: object):
        artifact, itm = ensure(*args, **options)
        rows = {
            name: (1.0 if name in ("segment_03", "full") else 0.01,) * len(row) for name, row in itm.median_ms.items()
        }
        return artifact, replace(itm, median_ms=rows)

    def measured(serves: list, *_: object, **__: object):
        in_order = np.arange(1.0, len(serves) + 1)
        return np.column_stack([in_order, in_order, in_order, np.ones(len(serves))]), 1

    monkeypatch.setattr("planner.workflow.inputs.ensure_itm", timed)
    monkeypatch.setattr("planner.commit.committing.measure_plans", measured)
