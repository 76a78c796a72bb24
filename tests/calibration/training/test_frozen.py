"""Frozen training: one pass of the backbone, features in a file, distillation, the same end after an interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import Model, RunFolder, TensorSpec
from calibration.data.samples import Samples
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import MOST_ROWS, SegmentRunner, fit_rows
from calibration.training.checkpoints import Checkpoint
from calibration.training.config import FrozenConfig
from calibration.training.features import FeatureCache, FeatureMaker
from calibration.training.training_flow import train_missing
from engines import run_graph
from export import build_missing_heads
from tests.calibration.training.chain_worlds import ENGINE, draw_bars, export_chain

FORCED = CalibrationOptions(force=True)  # the network is random, and so at chance
CONFIG = FrozenConfig(epochs=5, batch_size=32, max_candidates=2, head_share=1.0, learning_rate=0.01)


@pytest.fixture
def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the rows that go through the backbone for training; the network is asked before that, in its own way."""
    rows: list[int] = []
    run = SegmentRunner.run

    def counted(runner: SegmentRunner, inputs: Any) -> int:
        rows.append(run(runner, inputs))
        return rows[-1]

    monkeypatch.setattr(SegmentRunner, "run", counted)
    monkeypatch.setattr("calibration.training.training_flow.ask_network", lambda *_, **__: None)
    return rows


def history_of(run: RunFolder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run.training / "result" / "history.json").read_text())
    return found


def test_the_backbone_runs_once_where_images_are_not_varied(tmp_path: Path, count_runs: list[int]) -> None:
    bars = draw_bars(unlabelled := 160, labelled=False)
    run, _ = export_chain(tmp_path)
    train_missing(run, bars, CONFIG, ENGINE, options=FORCED)
    assert sum(count_runs) == unlabelled * 0.8 == len(bars.indices_of("train")) + len(bars.indices_of("calibrate"))
    assert len(history_of(run)) == 5
    assert sorted(path.name for path in run.training.iterdir() if path.is_file()) == [], "the features are gone"


def test_it_runs_in_every_epoch_where_they_are_or_the_disk_is_full(
    tmp_path: Path, count_runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = draw_bars(160, labelled=False)
    train, held_out = len(bars.indices_of("train")), len(bars.indices_of("calibrate"))
    said: list[str] = []
    run, _ = export_chain(tmp_path)
    varied = FrozenConfig(epochs=2, batch_size=32, max_candidates=2, head_share=1.0, augment="crop")
    train_missing(run, bars, varied, ENGINE, options=CalibrationOptions(report=said.append))
    assert sum(count_runs) == held_out + 2 * (train - train % 32)
    assert any("(--augment)" in line for line in said)

    from calibration.training import frozen

    (tmp_path / "full").mkdir()
    full, _ = export_chain(tmp_path / "full")
    monkeypatch.setattr(frozen, "fits_on_disk", lambda *_: False)
    same = FrozenConfig(epochs=2, batch_size=32, max_candidates=2, head_share=1.0)
    train_missing(full, bars, same, ENGINE, options=CalibrationOptions(report=said.append))
    assert any("do not fit on the disk" in line for line in said)


def test_a_cache_and_a_running_backbone_train_the_same_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibration.training import frozen

    torch.set_num_threads(1)
    bars, models = draw_bars(160), []
    for name, fits in (("kept", True), ("again", False)):
        (tmp_path / name).mkdir()
        run, _ = export_chain(tmp_path / name)
        monkeypatch.setattr(frozen, "fits_on_disk", lambda *_, fits=fits: fits)
        monkeypatch.setattr("calibration.training.candidates.time_parts", lambda parts, *_: [1.0] * len(parts))
        models.append(train_missing(run, bars, CONFIG, ENGINE, options=FORCED))
    rows = np.random.default_rng(0).random((4, 12, 8, 8), np.float32)
    for name, head in models[0].spec.heads.items():
        kept, again = (run_graph(model.path(head), {name: rows}) for model in models)
        for tensor, value in kept.items():
            np.testing.assert_allclose(value, again[tensor], rtol=1e-3, atol=1e-4)


def test_without_labels_heads_learn_the_answers_of_the_network(tmp_path: Path) -> None:
    run, _ = export_chain(tmp_path, layers=5)
    said: list[str] = []
    config = FrozenConfig(epochs=12, batch_size=32, head_share=1.0, learning_rate=0.01)
    options = CalibrationOptions(report=said.append)
    model = train_missing(run, draw_bars(labelled=False), config, ENGINE, options=options)
    assert any("by the answers of the full network" in line for line in said)
    first, last = history_of(run)[0], history_of(run)[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert min(last["accuracy"].values()) > 0.9, "agreement with the full network"
    assert set(last["accuracy"]) == set(model.spec.heads)


@pytest.mark.parametrize(("augment", "every_s", "killed"), [("none", 1e9, 3), ("none", 0.0, 4), ("crop", 0.0, 4)])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str, every_s: float, killed: int
) -> None:
    config = dataclasses.replace(CONFIG, augment=augment, epochs=4)
    monkeypatch.setattr("calibration.training.candidates.time_parts", lambda parts, *_: [1.0] * len(parts))
    bars = draw_bars(160)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    for root in (whole, pieces):
        root.mkdir()
        export_chain(root)
    expected = train_missing(RunFolder(root=whole / "run"), bars, config, ENGINE, options=FORCED)
    monkeypatch.setattr("calibration.training.checkpoints.SAVE_EVERY_S", every_s)

    class KilledError(Exception):
        pass

    save = Checkpoint.save

    def save_then_die(*args: Any) -> None:
        save(*args)
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_then_die)
        for _ in range(killed):  # every_s of 0: after every step, of which an epoch has three
            with pytest.raises(KilledError):
                train_missing(RunFolder(root=pieces / "run"), bars, config, ENGINE, options=FORCED)
    found = train_missing(RunFolder(root=pieces / "run"), bars, config, ENGINE, options=FORCED)
    assert _head_bytes(found) == _head_bytes(expected)


def _head_bytes(model: Model) -> list[bytes]:
    return [model.path(head).read_bytes() for head in model.spec.heads.values()]


def make_maker(root: Path, samples: Samples, rows: int) -> tuple[FeatureMaker, Model]:
    run, model = export_chain(root)
    heads = build_missing_heads(model)
    runner = SegmentRunner(model, run.engines, ENGINE, rows=rows, with_heads=False)
    return FeatureMaker(heads=heads, runner=runner, rows=rows, samples=samples, workers=0), model


def test_features_read_back_are_those_of_the_segments(tmp_path: Path) -> None:
    bars = draw_bars(60)
    indices = bars.indices_of("train")
    maker, model = make_maker(tmp_path, bars, rows=7)
    with maker.runner:
        made = list(maker.make(indices))
    (tmp_path / "kept").mkdir()
    with FeatureCache(tmp_path / "kept", made[0]) as cache:
        for features in made:
            cache.append(features)
        assert len(cache) == len(indices)
        picked = np.array([11, 0, 11, len(indices) - 1])
        found = cache.read(picked)
    assert list((tmp_path / "kept").iterdir()) == [], "the file has no name"
    assert np.array_equal(found.targets, bars.targets(indices[picked]))
    whole = run_graph(model.path(model.spec.full), bars.inputs(indices[picked]))
    np.testing.assert_allclose(found.answers.numpy(), whole["logits"], rtol=1e-4, atol=1e-5)
    segment = model.spec.segments[0]
    first = run_graph(model.path(segment), bars.inputs(indices[picked]))["layer0"]
    head = maker.heads["layer0"]
    with torch.no_grad():
        from export import answer_reduced

        expected = head.eval()(torch.from_numpy(first))
        halves = answer_reduced(head, found.reduced["layer0"])
    np.testing.assert_allclose(halves.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_micro_batches_shrink_with_the_memory_and_the_size_of_the_images(tmp_path: Path) -> None:
    _, model = export_chain(tmp_path)
    rows = [fit_rows(model.spec, memory) for memory in (1 << 40, 1 << 20, 1 << 10, 0)]
    assert rows[0] == MOST_ROWS
    assert rows == sorted(rows, reverse=True)
    assert MOST_ROWS > rows[1] > 1
    assert rows[2:] == [1, 1]
    large = TensorSpec(name="images", dtype="float32", row_shape=(1, 2048, 2048))
    first = dataclasses.replace(model.spec.segments[0], inputs=(large,))
    spec = dataclasses.replace(model.spec, segments=(first, *model.spec.segments[1:]))
    assert fit_rows(spec, 1 << 40) < MOST_ROWS, "nothing is gained by more"
