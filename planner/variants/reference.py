"""The network that all variants are compared with: in float32, on the first engine that was named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from artifacts import PRECISIONS, GraphSpec, Model, RunFolder, is_current
from engines import in_float32
from planner.config import SELF, PlanConfig
from planner.measure.reference_times import (
    VARIANT,
    ReferenceTimes,
    VariantRecord,
    ensure_reference_times,
    write_variant,
)
from planner.measure.timing import EngineSettings
from planner.measure.whole_networks import WholeNetwork
from planner.predict.costs import FULL
from planner.predict.matrices import scale_times
from planner.variants.listing import Variant
from planner.workflow.inputs import PlanningInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The network in float32 that slow batches of every variant are compared with.

    Attributes:
        backend: its engine.
        times: its own.
        digest: of the artifact that they lie in.
        network: to be timed in turns with the variants.
    """

    backend: str
    times: ReferenceTimes
    digest: str
    network: WholeNetwork

    def full_ms(self, batch_size: int) -> float:
        """Returns the time of a batch by its own times."""
        return self.times.itm.row_ms(FULL)[self.times.itm.batch_sizes.index(batch_size)]

    def is_variant(self, variant: Variant) -> bool:
        """Tells whether a variant is this network on this engine."""
        return (variant.backend, variant.graph) == (self.backend, PRECISIONS[0])


def find_reference(
    run: RunFolder, prepared: Mapping[Variant, PlanningInputs], config: PlanConfig, report: Callable[[str], None]
) -> Reference | None:  # fmt: skip
    """Returns the reference, timed unless a variant has its times; ``None`` where the tolerance refers to each variant
    itself, or where no variant holds the network in float32.

    Args:
        run: of the network.
        prepared: the variants, those of the first engine first.
        config: what to plan for, of whatever engine.
        report: takes lines about the progress.
    """
    if config.certify.reference == SELF:
        return None
    backend = in_float32(next(iter(prepared)).backend)
    settings = EngineSettings.of(replace(config, backend=backend))
    for variant, inputs in prepared.items():
        if (variant.backend, variant.graph) == (backend, PRECISIONS[0]):
            times, digest = ReferenceTimes.of(backend, inputs.itm), inputs.itm_artifact.digest
            network = whole_network(variant, inputs, config)
            return Reference(backend=backend, times=times, digest=digest, network=network)
    for inputs in prepared.values():
        model = inputs.require_model()
        if (graph := _in_float32(model)) is not None:
            artifact, times = ensure_reference_times(run, model, graph, replace(config, backend=backend), report)
            network = WholeNetwork(model=model, graph=graph, settings=settings, cache=run.engines)
            return Reference(backend=backend, times=times, digest=artifact.digest, network=network)
    report("note: no variant holds the network in float32, so the slow batches of each are compared with itself")
    return None


def whole_network(variant: Variant, inputs: PlanningInputs, config: PlanConfig) -> WholeNetwork:
    """Returns the whole network of a variant, to be timed in turns with others."""
    model = inputs.require_model()
    return WholeNetwork(
        model=model, graph=model.spec.full, settings=EngineSettings.of(replace(config, backend=variant.backend)),
        cache=variant.run.engines,
    )  # fmt: skip


def record_variant(
    variant: Variant, inputs: PlanningInputs, reference: Reference | None, factor: float, report: Callable[[str], None]
) -> PlanningInputs:  # fmt: skip
    """Keeps in a variant's run what its slow batches are compared with, and returns what it is planned with.

    Args:
        variant: one that was prepared.
        inputs: as they were prepared.
        reference: ``None``: the variant itself.
        factor: how much longer the reference would have taken at the time when the variant was timed. What was kept
            before stays, so that a plan stands while nothing has changed.
        report: takes lines about the progress.
    """
    own = reference is None or reference.is_variant(variant)
    origin = {"itm": inputs.itm_artifact.digest} | ({} if own or reference is None else {"reference": reference.digest})
    if not is_current(variant.run.root / VARIANT, kind=VARIANT, inputs=origin, parameters={}):
        times = None
        if reference is not None and not own:
            times = replace(reference.times, itm=scale_times(reference.times.itm, factor))
        record = VariantRecord(
            engine=variant.engine, precision=variant.precision, backend=variant.backend, reference=times
        )
        write_variant(variant.run, record, inputs=origin)
    return inputs.as_variant(report)


def _in_float32(model: Model) -> GraphSpec | None:
    return model.spec.full if model.spec.precision == PRECISIONS[0] else model.spec.reference
