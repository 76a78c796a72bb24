"""Blurred, inverted and noisy images through the demo network: seen; its own test images: no alarm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from artifacts import (
    BundleSpec,
    ExitPlan,
    InferenceTimeMatrix,
    PlannedExit,
    PredictedLatency,
    RunFolder,
    StreamReference,
    open_model,
)
from calibration import ArrayImages, as_batch
from calibration.data.published.fashion_mnist import DIGESTS, find_cache, load_fashion_mnist
from engines import EngineSet, HostDevice
from planner import Exits
from planner.commit.stages import TimedStages, assemble_bundle, merge_stages, stage_bounds
from planner.predict.costs import stage_row
from runtime import Runtime, RuntimeOptions
from runtime.loading import open_bundle

pytestmark = pytest.mark.slow
CHOSEN = Exits(cuts=("layer1.1", "layer2.0"), thresholds=(0.75, 0.75))
BATCH, ENOUGH = 32, 3200


@pytest.fixture(scope="module")
def data() -> ArrayImages:
    if (cache := find_cache()) is None:
        pytest.skip("there is no home folder for Fashion-MNIST")
    if missing := [name for name in DIGESTS if not (cache / f"{name}.gz").is_file()]:
        pytest.skip(f"Fashion-MNIST is not in {cache} ({missing[0]}.gz); 'make demo' fetches it")
    return load_fashion_mnist(cache)


def assemble_demo(root: Path) -> Path:
    """Makes a bundle of the pretrained network with two exits; nothing is timed."""
    from export import ExportOptions, ensure_model

    run = RunFolder(root=root / "resnet")
    ensure_model(run, ExportOptions())
    model = open_model(run.model, remedy="")
    plan = ExitPlan(
        model_digest=model.digest, trace_digest="", search="greedy", tolerance=0.01, delta=None, batch_size=BATCH,
        backend="onnxruntime", threads=1, full_metric=0.93, predicted_metric=0.92,
        predicted=PredictedLatency(full_ms=2.0, mean_ms=1.0, batch_ms=1.0, oracle_mean_ms=1.0),
        exits=tuple(
            PlannedExit(cut=cut, threshold=threshold, leaving_share=0.4, metric=None, arrival_ms=1.0)
            for cut, threshold in zip(CHOSEN.cuts, CHOSEN.thresholds, strict=True)
        ),
    )  # fmt: skip
    rows = ["full", *(stage_row(*bounds) for bounds in stage_bounds(CHOSEN.cuts))]
    itm = InferenceTimeMatrix(
        backend="onnxruntime", threads=1, batch_sizes=(1, BATCH), median_ms=dict.fromkeys(rows, (1.0, 2.0)),
        spread_ms=dict.fromkeys(rows, (0.0, 0.0)), fixed=False, environment={},
    )  # fmt: skip
    stages = merge_stages(model, [CHOSEN], root / "stages")
    timed = TimedStages(merged=stages, itm=itm, cache=run.engines)
    assemble_bundle(run.bundle, model=model, plan=plan, stages=timed, inputs={})
    return run.bundle


@pytest.fixture(scope="module")
def demo(data: ArrayImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BundleSpec]:
    """The bundle, and its spec with the reference of the calibration images."""
    for name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
        pytest.importorskip(name, reason="exports and serves the demo network: pip install 'pame[train]'")
    bundle = assemble_demo(tmp_path_factory.mktemp("demo"))
    with Runtime.load(bundle, shadow_fraction=1.0) as runtime:
        images = as_batch(data.inputs(data.indices_of("calibrate")))
        for start in range(0, len(images), 500):
            runtime.run(images[start : start + 500])
        stats, spec = runtime.stats(), runtime.spec
    early = [exit_.agreements for exit_ in stats.exits[:-1]]
    reference = StreamReference(
        samples=stats.queries,
        confidence_counts=tuple(exit_.confidence_counts for exit_ in stats.exits),
        agreements=(*early, stats.exits[-1].count),
    )
    return bundle, dataclasses.replace(spec, plan=dataclasses.replace(spec.plan, reference=reference))


def serve(demo: tuple[Path, BundleSpec], images: np.ndarray) -> Runtime:
    """Serves images in batches and returns the closed runtime."""
    bundle, spec = demo
    with ExitStack() as stack:
        engine_sets: tuple[EngineSet, ...] = open_bundle(bundle).engine_sets
        runtime = stack.enter_context(
            Runtime(spec, engine_sets, HostDevice(), RuntimeOptions(shadow_fraction=0.05, shadow_seed=0))
        )
        for start in range(0, len(images), BATCH):
            runtime.run(images[start : start + BATCH])
    return runtime


def blurred(images: np.ndarray) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    shifted = [padded[:, :, row : row + 28, column : column + 28] for row in range(3) for column in range(3)]
    return np.mean(shifted, axis=0, dtype=np.float32)


def inverted(images: np.ndarray) -> np.ndarray:
    return images.max() + images.min() - images


def noisy(images: np.ndarray) -> np.ndarray:
    low, high = images.min(), images.max()
    noise = np.random.default_rng(0).normal(0, 0.1, images.shape) * (high - low)
    return np.clip(images + noise, low, high).astype(np.float32)


def test_the_test_images_raise_no_alarm(demo: tuple[Path, BundleSpec], data: ArrayImages) -> None:
    images = as_batch(data.inputs(data.indices_of("test")))
    stats = serve(demo, images).stats()
    assert stats.queries == len(images)
    assert stats.alarm is None
    assert stats.disagreement is not None
    assert 0 < stats.disagreement < 0.1


@pytest.mark.parametrize("shift", [blurred, inverted, noisy])
def test_other_images_raise_one(
    demo: tuple[Path, BundleSpec], data: ArrayImages, shift: Callable[[np.ndarray], np.ndarray]
) -> None:
    stats = serve(demo, shift(as_batch(data.inputs(data.indices_of("test")[:ENOUGH])))).stats()
    assert stats.alarm is not None
    assert stats.alarm.queries <= ENOUGH
