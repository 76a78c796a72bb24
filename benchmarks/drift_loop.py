"""The loop from drift to a new bundle, on streams of the demo's images: blurred, noisy, and of another class mix.

A host with ``on_drift="tighten"`` serves the run's test images, then the same images drifted. What it answers once rows
leave again is compared with the whole network's answers. Then a copy of the run is recalibrated from the host's log,
and the old bundle, the new one and the full network answer batches of the drifted stream in turns::

    python -m benchmarks.drift_loop --run runs/resnet --json drift.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import RunFolder, environment_fingerprint
from calibration import ImageSamples, as_batch, load_run_data
from planner.workflow.recalibrating import Recalibration, recalibrate_run
from runtime import AsyncRuntime, HostOptions, Runtime, RuntimeOptions, RuntimeStats, open_bundle, without_leaving

_REQUEST, _AT_ONCE, _BATCH = 4, 16, 32
_MIXED = (0, 2, 4, 6)  # T-shirts, pullovers, coats, shirts: the classes that are hard to tell apart


def blur(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Averages every pixel with its eight neighbours."""
    padded = np.pad(pixels.astype(np.float32), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = pixels.shape[-2:]
    moved = [padded[..., down : down + height, right : right + width] for down in range(3) for right in range(3)]
    return (sum(moved) / 9).astype(np.uint8)


def add_noise(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Adds normal noise with a standard deviation of 15 of 255."""
    return np.clip(pixels + random.normal(0, 15, pixels.shape), 0, 255).astype(np.uint8)


def keep(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Returns the pixels as they are."""
    return pixels


DRIFTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blur": blur, "noise": add_noise, "class mix": keep,
}  # fmt: skip


class ImageStream:
    """Rows of a stream, drawn with replacement from the test images."""

    def __init__(self, samples: ImageSamples, drift: str | None, *, seed: int) -> None:
        self._samples = samples
        self._random = np.random.default_rng(seed)
        self._change = keep if drift is None else DRIFTS[drift]
        test = samples.indices_of("test")
        if drift == "class mix":
            test = test[np.isin(samples.targets(test), _MIXED)]
        self._drawn_from = test

    def draw(self, rows: int) -> np.ndarray:
        """Returns the network's input for some rows."""
        chosen = self._random.choice(self._drawn_from, rows)
        batch = as_batch(self._samples.prepare(self._change(self._samples.pixels(chosen), self._random)))
        assert isinstance(batch, np.ndarray)
        return batch


async def serve(host: AsyncRuntime, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers rows in small requests; returns the classes and where the rows left."""
    classes, exits = [], []
    step = _REQUEST * _AT_ONCE
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        requests = [part[row : row + _REQUEST] for row in range(0, len(part), _REQUEST)]
        found = await asyncio.gather(*map(host.infer, requests))
        classes += [np.asarray(result.outputs).argmax(axis=1) for result in found]
        exits += [result.exit_index for result in found]
    return np.concatenate(classes), np.concatenate(exits)


async def drift_and_tighten(
    bundle: Path, streams: tuple[ImageStream, ImageStream], log: Path, rows: int
) -> dict[str, Any]:
    """Serves a calm stream, then a drifted one until rows leave again and ``rows`` more are answered."""
    calm, drifted = streams
    options = HostOptions(on_drift="tighten", shadow_fraction=0.02, shadow_seed=0, shadow_log=log, log_inputs=True)
    async with AsyncRuntime.load(bundle, max_waiting_rows=128, options=options) as host:
        await serve(host, calm.draw(rows))
        before = host.stats()
        served, mode = 0, "planned"
        while mode not in ("tightened", "full") and served < 40 * rows:
            await serve(host, drifted.draw(512))
            served += 512
            mode = _response(host.stats()).mode
        after = drifted.draw(rows)
        classes, exits = await serve(host, after)
        stats = host.stats()
    with Runtime.load(bundle) as planned:
        untouched = planned.run(after)
    full = answer_fully(bundle, after)
    response = _response(stats)
    return {
        "alarm_while_calm": None if before.alarm is None else before.alarm.message,
        "alarm": None if stats.alarm is None else stats.alarm.message,
        "rows_until_it_was_over": served, "mode": response.mode, "thresholds": response.thresholds,
        "seen_disagreement": response.disagreement, "alarms": response.alarms,
        "agreement_as_planned": float((np.asarray(untouched.outputs).argmax(1) == full).mean()),
        "agreement_after": float((classes == full).mean()),
        "leave_early_as_planned": float((untouched.exit_index < len(response.thresholds)).mean()),
        "leave_early_after": float((exits < len(response.thresholds)).mean()), "rows": rows,
    }  # fmt: skip


def _response(stats: RuntimeStats) -> Any:
    assert stats.response is not None
    return stats.response


def answer_fully(bundle: Path, batch: np.ndarray) -> np.ndarray:
    """Returns the whole network's classes."""
    opened = open_bundle(bundle)
    options = RuntimeOptions(drift=None)
    with Runtime(without_leaving(opened.spec), opened.engine_sets, opened.device, options) as runtime:
        return np.asarray(runtime.run(batch).outputs).argmax(axis=1)


def recalibrate(run: RunFolder, log: Path, folder: Path, stream: ImageStream, rows: int) -> dict[str, Any]:
    """Recalibrates a copy of the run, and measures the new bundle beside the old one and the full network."""
    copy = RunFolder(root=folder / run.name)
    shutil.copytree(run.root, copy.root)
    result = recalibrate_run(copy, Recalibration(log=log), lambda line: print(f"  {line}", flush=True))
    full = open_bundle(run.bundle)
    spec = without_leaving(full.spec)
    with (
        Runtime.load(run.bundle) as old, Runtime.load(copy.bundle) as new,
        Runtime(spec, full.engine_sets, full.device, RuntimeOptions(drift=None)) as whole,
    ):  # fmt: skip
        batch = stream.draw(rows)
        parts = [batch[start : start + _BATCH] for start in range(0, rows, _BATCH)]
        found: dict[str, list[Any]] = {"old": [], "new": [], "full": []}
        for part in parts:
            for name, runtime in (("old", old), ("new", new), ("full", whole)):
                found[name].append(runtime.run(part))
    classes = {
        name: np.concatenate([np.asarray(result.outputs) for result in results]).argmax(axis=1)
        for name, results in found.items()
    }
    latency = {
        f"{name}_mean_latency_ms": float(np.concatenate([result.latency_ms for result in results]).mean())
        for name, results in found.items()
    }
    certificate = result.plan.certificate
    return {
        "exits": [(exit_.cut, exit_.threshold) for exit_ in result.plan.exits],
        "certified_bound": None if certificate is None else certificate.bound,
        "agreement_old": float((classes["old"] == classes["full"]).mean()),
        "agreement_new": float((classes["new"] == classes["full"]).mean()), **latency,
    }  # fmt: skip


def main() -> None:
    """Goes through the loop for every drift."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/resnet"))
    parser.add_argument(
        "--rows", type=int, default=4096, help="answered and compared per stream (default: %(default)s)"
    )
    parser.add_argument("--drifts", default=",".join(DRIFTS), help="default: %(default)s")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = RunFolder(root=arguments.run)
    samples = load_run_data(run)
    assert isinstance(samples, ImageSamples)
    results: dict[str, Any] = {}
    for drift in arguments.drifts.split(","):
        print(drift, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            streams = (ImageStream(samples, None, seed=1), ImageStream(samples, drift, seed=2))
            log = Path(folder) / "log"
            found = asyncio.run(drift_and_tighten(run.bundle, streams, log, arguments.rows))
            found["recalibrated"] = recalibrate(
                run, log, Path(folder), ImageStream(samples, drift, seed=3), arguments.rows
            )
        results[drift] = found
        print(json.dumps(found, indent=1), flush=True)
    if arguments.json is not None:
        text = json.dumps({"streams": results, "environment": environment_fingerprint()}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
