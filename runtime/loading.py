"""Loading of a bundle: verified byte by byte, its engines vetted for this machine and opened."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts import BUNDLE_JSON, MANIFEST, Artifact, BundleSpec, SchemaError, StageSpec, open_artifact, read_json
from engines import Device, DeviceOptions, Engine, EngineSet, open_device, open_engine, plan_covers
from runtime.checks import check_stages
from runtime.remedy import bundle_remedy
from runtime.signatures import check_signature

_DEVICE = DeviceOptions()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenBundle:
    """A bundle whose engines are open.

    Attributes:
        artifact: its folder and manifest.
        spec: what it holds.
        engine_sets: one per stage.
        device: where they run.
        one_graph: the engine of ``spec.one_graph``, if it was opened.
    """

    artifact: Artifact
    spec: BundleSpec
    engine_sets: tuple[EngineSet, ...]
    device: Device
    one_graph: Engine | None = None

    def close(self) -> None:
        """Closes the engines, then the device; may be called twice."""
        with ExitStack() as stack:
            stack.callback(self.device.close)
            for engines in self.engine_sets:
                stack.callback(engines.close)
            if self.one_graph is not None:
                stack.callback(self.one_graph.close)


def open_bundle(
    folder: Path,
    *,
    threads: int | None = None,
    device: DeviceOptions = _DEVICE,
    verify: Path | None = None,
    stages_only: bool = False,
) -> OpenBundle:
    """Opens the bundle in ``folder`` with ``threads`` per engine, by default as many as its plan was timed with.

    ``device`` says which device it runs on, and how; ``verify`` whose signature it must have; ``stages_only`` that the
    one graph of the bundle, if it has one, is not needed.

    Raises:
        As ``Runtime.load``.
    """
    if verify is not None:
        check_signature(folder, verify)
    remedy = bundle_remedy(folder)
    artifact = open_artifact(folder, kind="bundle", remedy=remedy)
    spec = read_json(artifact.path(BUNDLE_JSON), BundleSpec)
    engine_sets = []
    with ExitStack() as opened:
        place = open_device(spec.backend, device)
        opened.callback(place.close)
        for stage in spec.stages:
            engine_folder = artifact.path(f"{stage.engine}/{MANIFEST}").parent
            engine = open_engine(engine_folder, stage.graph, threads=threads or spec.threads, device=place)
            opened.callback(engine.close)
            engine_sets.append(_cover_stage(engine, stage, spec, remedy))
        check_stages(spec, engine_sets, remedy=remedy)
        one_graph: Engine | None = None
        if spec.one_graph is not None and not stages_only:
            engine_folder = artifact.path(f"{spec.one_graph.engine}/{MANIFEST}").parent
            one_graph = open_engine(engine_folder, spec.one_graph.graph, threads=threads or spec.threads, device=place)
        opened.pop_all()
    return OpenBundle(
        artifact=artifact, spec=spec, engine_sets=tuple(engine_sets), device=place, one_graph=one_graph
    )  # fmt: skip


def without_leaving(spec: BundleSpec) -> BundleSpec:
    """Returns the bundle with thresholds that no row reaches: what a batch costs whose rows all go to the end."""
    *early, last = spec.stages
    exits = tuple(replace(exit_, threshold=math.inf) for exit_ in spec.plan.exits)
    stages = (*(replace(stage, threshold=math.inf) for stage in early), last)
    return replace(spec, stages=stages, plan=replace(spec.plan, exits=exits), one_graph=None)


def _cover_stage(engine: Engine, stage: StageSpec, spec: BundleSpec, remedy: str) -> EngineSet:
    fixed = bool(engine.key.batch_sizes)
    try:
        covers, *shorter = (
            plan_covers({int(size): ms for size, ms in times.items()}, largest=spec.max_batch_size, fixed=fixed)
            for times in (stage.median_ms, *stage.shorter_ms.values())
        )
        lengths = [int(length) for length in stage.shorter_ms]
    except ValueError as error:
        raise SchemaError(
            f"bundle '{spec.name}': the times of stage '{stage.graph.name}' are not by batch size ({error}). "
            f"Make it again with: {remedy}"
        ) from error
    return EngineSet(engine, covers, dict(zip(lengths, shorter, strict=True)))
