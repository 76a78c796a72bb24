"""Reference times: how long a batch takes through the network that would be run otherwise, in float32, without exits.

A variant of a network (``planner.variants``) is one of several in other precisions or on other engines. Its tolerance
is a loss against the network in float32, and so are its slow batches: where it takes a third of that network's time,
a batch of which no row leaves may pay for several exit heads and is still answered sooner than before. A variant's run
keeps these times beside its engine, so that whoever plans it again alone judges by the same network.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from artifacts import (
    MANIFEST,
    PRECISIONS,
    Artifact,
    GraphSpec,
    InferenceTimeMatrix,
    Model,
    RunFolder,
    environment_fingerprint,
    is_current,
    new_artifact,
    open_artifact,
    read_json,
    to_plain,
    write_json,
)
from engines import in_float32
from planner.config import PlanConfig
from planner.measure.timing import ITM_JSON, Clock, EngineSettings, TimedGraph, time_graphs
from planner.predict.costs import FULL, SERVING
from planner.predict.matrices import keep_rows

REFERENCE = "reference"
VARIANT, VARIANT_JSON = "variant", "variant.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceTimes:
    """The network that slow batches of a variant are compared with.

    Attributes:
        label: its engine and precision.
        itm: its rows ``full`` and ``serving``, as they would have been when the variant was timed.
    """

    label: str
    itm: InferenceTimeMatrix

    @classmethod
    def of(cls, backend: str, itm: InferenceTimeMatrix) -> Self:
        """Returns the times of a network in float32 on a backend, from a matrix that has them among others."""
        return cls(label=f"{backend} {PRECISIONS[0]}", itm=keep_rows(itm, (FULL, SERVING)))

    def why_unusable(self, itm: InferenceTimeMatrix) -> str | None:
        """Returns why these times cannot be held against those of a matrix; ``None`` where they can."""
        mine = self.itm
        if mine.threads != itm.threads:
            return f"they are of {mine.threads} threads, not {itm.threads}"
        if (mine.batch_sizes, mine.lengths) != (itm.batch_sizes, itm.lengths):
            return f"they are of batches of {', '.join(map(str, mine.batch_sizes))}, as the variants were compared"
        if _machine(mine) != _machine(itm):
            return "they were taken on another machine, or with other versions of the engines"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRecord:
    """What a run that is a variant keeps of itself, as in ``variant.json``.

    Attributes:
        engine, precision: as they were asked for.
        backend: the engine backend that it is planned for.
        reference: what its slow batches are compared with; ``None``: itself without exits.
    """

    engine: str
    precision: str
    backend: str
    reference: ReferenceTimes | None


def ensure_reference_times(
    run: RunFolder, model: Model, graph: GraphSpec, config: PlanConfig, report: Callable[[str], None],
    *, clock: Clock = time.perf_counter,
) -> tuple[Artifact, ReferenceTimes]:  # fmt: skip
    """Times a network in float32 on a backend's float32 engines, unless that is there already.

    Args:
        run: holds the times, in ``reference/``, and the engine.
        model: the network, or a form of it in another precision that keeps it in float32.
        graph: the whole network in float32, of ``model``.
        config: its backend, threads and timing decide how.
        report: takes lines about the progress.
        clock: seconds.
    """
    backend = in_float32(config.backend)
    settings = EngineSettings.of(replace(config, backend=backend))
    inputs = {"network": next(entry.sha256 for entry in model.artifact.manifest.files if entry.path == graph.file)}
    parameters = {
        "settings": to_plain(settings), "timing": to_plain(config.timing), "environment": environment_fingerprint(),
    }  # fmt: skip
    folder = run.root / REFERENCE
    if not is_current(folder, kind=REFERENCE, inputs=inputs, parameters=parameters):
        report(f"timing the network in {PRECISIONS[0]} on {backend}, which slow batches are compared with")
        timed = TimedGraph(row=FULL, onnx=model.path(graph), graph=graph)
        itm = time_graphs([timed], model.spec, run.engines, config.timing, settings, clock=clock)
        with new_artifact(folder, kind=REFERENCE, inputs=inputs, parameters=parameters) as staging:
            write_json(staging / ITM_JSON, itm)
    artifact = open_artifact(folder, kind=REFERENCE, remedy=run.remedy("planner"))
    itm = read_json(artifact.path(ITM_JSON), InferenceTimeMatrix)
    return artifact, ReferenceTimes.of(backend, itm)


def write_variant(run: RunFolder, record: VariantRecord, *, inputs: Mapping[str, str]) -> None:
    """Publishes what a variant keeps of itself; ``inputs`` are the digests of what its reference times came from."""
    with new_artifact(run.root / VARIANT, kind=VARIANT, inputs=inputs) as staging:
        write_json(staging / VARIANT_JSON, record)


def find_variant(run: RunFolder) -> tuple[Artifact, VariantRecord] | None:
    """Returns what a run keeps of itself as a variant; ``None`` for a run that is none.

    Raises:
        ArtifactError: it is damaged.
    """
    folder = run.root / VARIANT
    if not (folder / MANIFEST).is_file():
        return None
    remedy = f"rm -r {shlex.quote(str(folder))}, then python -m planner --engines ... --precisions ..."
    artifact = open_artifact(folder, kind=VARIANT, remedy=remedy)
    return artifact, read_json(artifact.path(VARIANT_JSON), VariantRecord)


def _machine(itm: InferenceTimeMatrix) -> dict[str, str]:
    return {name: value for name, value in itm.environment.items() if name != "timing_rounds"}
