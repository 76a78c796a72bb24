"""Comparing variants: each is prepared like a run of its own, and the fastest is planned, certified and committed.

Which one is decided by the samples for tuning, so that the certificate is spent on one plan and not on the best of
several: the samples of the test play no part before the winner is planned. Every variant's expected time is corrected
by how its whole network does when all whole networks are timed in turns. Slow batches of all variants are compared with
one network, that which the tolerance refers to (``planner.variants.reference``).

Heads are trained once for every precision of the graph; engines with an arithmetic of their own trace and time them in
that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts import (
    MANIFEST,
    PRECISIONS,
    NoPlanError,
    PameError,
    RunFolder,
    copy_folder,
    new_artifact,
    open_artifact,
    open_model,
    to_plain,
    write_json,
)
from calibration import CalibrationOptions, DataSource, FrozenConfig, JointConfig
from export import CALIBRATED, ExportOptions
from planner.config import PlanConfig
from planner.measure.whole_networks import time_whole_networks
from planner.predict.costs import FULL
from planner.variants.comparison import COMPARISON, COMPARISON_JSON, Comparison, ReferenceFigures, VariantFigures
from planner.variants.expecting import expect_variant
from planner.variants.listing import LeftOut, Variant
from planner.variants.reference import find_reference, record_variant, whole_network
from planner.workflow.from_source import prepare_network
from planner.workflow.inputs import PlanningInputs
from planner.workflow.planning import plan_inputs
from planner.workflow.record import PlanningResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonJob:
    """What is compared.

    Attributes:
        run: of the network; the variants lie in it.
        export: how the network is exported, of whatever precision.
        data: ``--data``.
        config: what to plan for, of whatever engine.
        training: how exit heads are trained.
        options: task, parts, messages and the command line to record.
    """

    run: RunFolder
    export: ExportOptions
    data: DataSource | None
    config: PlanConfig
    training: FrozenConfig | JointConfig
    options: CalibrationOptions

    @property
    def report(self) -> Callable[[str], None]:
        """Takes lines about the progress."""
        return self.options.report

    def config_of(self, variant: Variant) -> PlanConfig:
        """Returns what is planned for with the engines of a variant."""
        return replace(self.config, backend=variant.backend)


def plan_fastest(
    job: ComparisonJob, variants: Sequence[Variant], left_out: Sequence[LeftOut]
) -> tuple[PlanningResult, Comparison, Variant]:
    """Prepares all variants, and plans, certifies and commits the one that is expected to be the fastest.

    Args:
        job: what is compared.
        variants: at least one.
        left_out: what was left out before.

    Returns:
        The plan, the comparison, and the variant that was chosen.

    Raises:
        NoPlanError: no variant keeps the tolerance.
        PameError: no variant can be had.
    """
    prepared: dict[Variant, PlanningInputs] = {}
    refused = list(left_out)
    for number, variant in enumerate(variants, start=1):
        job.report(f"variant {number} of {len(variants)}: {variant.label}, in {variant.run.root}")
        try:
            prepared[variant] = _prepare(job, variant, prepared)
        except PameError as error:
            job.report(f"left out: {variant.label}: {error}")
            refused.append(LeftOut(label=variant.label, reason=str(error)))
    if not prepared:
        raise PameError(f"no variant can be had: {'; '.join(f'{item.label}: {item.reason}' for item in refused)}")
    figures, reference = _compare(job, prepared)
    able = {variant: found.expected_ms for variant, found in figures.items() if found.expected_ms is not None}
    if not able:
        _publish(job, figures, reference, refused)
        lost = "; ".join(
            f"{found.label} itself keeps {found.metric / found.reference_metric:.2%}" for found in figures.values()
        )
        raise NoPlanError(f"no variant keeps the tolerance of {job.config.tolerance:g}: {lost}. Allow more with "
                          "--tolerance")  # fmt: skip
    winner = min(able, key=lambda variant: able[variant])
    figures[winner] = replace(figures[winner], chosen=True)
    comparison = _publish(job, figures, reference, refused)
    job.report(
        f"{winner.label} is expected to be the fastest, by the samples for tuning; it alone is certified and committed"
    )
    result = plan_inputs(
        winner.run, prepared[winner], job.config_of(winner), job.report, data=job.data, command=job.options.command
    )
    return result, comparison, winner


def _prepare(job: ComparisonJob, variant: Variant, prepared: dict[Variant, PlanningInputs]) -> PlanningInputs:
    alike = next((other.run for other in prepared if other.graph == variant.graph), None)
    if alike is None and variant.graph == PRECISIONS[0] and (job.run.model / MANIFEST).is_file():
        there = open_model(job.run.model, remedy=job.run.remedy("export"))
        alike = job.run if there.spec.precision == PRECISIONS[0] else None
    if alike is not None:
        _share_model(alike, variant.run)
    named = str(job.data) if isinstance(job.data, str | Path) else None
    export = replace(job.export, precision=variant.graph, data=named if variant.graph in CALIBRATED else None)
    return prepare_network(
        export, data=job.data, run=variant.run.root, config=job.config_of(variant), training=job.training,
        options=job.options,
    )  # fmt: skip


def _share_model(source: RunFolder, target: RunFolder) -> None:
    """Gives a run the model of another with its exit heads; files are the same on the disk where that is possible."""
    for folder, other in ((source.model, target.model), (source.training, target.training)):
        if not folder.is_dir() or _is_same(folder / MANIFEST, other / MANIFEST):
            continue
        copy_folder(folder, other)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.read_bytes() == other.read_bytes()
    except OSError:
        return False


def _compare(
    job: ComparisonJob, prepared: dict[Variant, PlanningInputs]
) -> tuple[dict[Variant, VariantFigures], ReferenceFigures | None]:
    """Returns the figures of the variants, the fastest first, and what slow batches are compared with.

    What they are planned with, in ``prepared``, then refers to that.
    """
    size, config = job.config.batch_size, job.config
    reference = find_reference(job.run, prepared, config, job.report)
    networks = [whole_network(variant, inputs, config) for variant, inputs in prepared.items()]
    job.report(f"timing {len(networks)} whole networks in turns")
    whole_ms = time_whole_networks([*networks, *([] if reference is None else [reference.network])], size)
    figures, reference_ms = {}, whole_ms[-1]
    for (variant, inputs), now_ms in zip(prepared.items(), whole_ms, strict=False):
        slower = now_ms / _whole_ms(inputs, size)  # now than when the variant was timed
        factor = 1.0 if reference is None else reference_ms / reference.full_ms(size) / slower
        prepared[variant] = record_variant(variant, inputs, reference, factor, job.report)
        figures[variant] = _expect(job, variant, prepared[variant], now_ms=now_ms, slower=slower)
    ordered = sorted(figures.items(), key=lambda item: (item[1].expected_ms is None, item[1].expected_ms or 0.0))
    compared = None if reference is None else ReferenceFigures(label=reference.times.label, whole_ms=reference_ms)
    return dict(ordered), compared


def _expect(
    job: ComparisonJob, variant: Variant, inputs: PlanningInputs, *, now_ms: float, slower: float
) -> VariantFigures:  # fmt: skip
    referred = inputs.referring_to(job.config.certify.reference)
    costs = referred.costs(batch_size=job.config.batch_size, load=job.config.load)
    expected = expect_variant(inputs.trace, costs, job.config_of(variant))
    stay_ms = costs.stay_ms(expected.exits)
    return VariantFigures(
        label=variant.label, run=str(variant.run.root), metric=expected.full_metric,
        reference_metric=expected.reference_metric, whole_ms=now_ms,
        expected_ms=None if expected.ms is None else expected.ms * slower, exits=expected.exits,
        stay_ratio=stay_ms / costs.full_ms, stay_reference_ratio=stay_ms / costs.slow_above.full_ms,
    )  # fmt: skip


def _whole_ms(inputs: PlanningInputs, size: int) -> float:
    return inputs.itm.row_ms(FULL)[inputs.itm.batch_sizes.index(size)]


def _publish(
    job: ComparisonJob, figures: dict[Variant, VariantFigures], reference: ReferenceFigures | None,
    left_out: Sequence[LeftOut],
) -> Comparison:  # fmt: skip
    config = job.config
    comparison = Comparison(
        tolerance=config.tolerance, objective=config.objective, batch_size=config.batch_size, threads=config.threads,
        variants=tuple(figures.values()), left_out=tuple(left_out), reference=reference,
    )  # fmt: skip
    traces = {variant.label: open_artifact(variant.run.trace, kind="trace", remedy="").digest for variant in figures}
    with new_artifact(
        job.run.root / COMPARISON, kind="comparison", inputs=traces, parameters={"config": to_plain(config)},
        notes=job.options.notes(job.run),
    ) as staging:  # fmt: skip
        write_json(staging / COMPARISON_JSON, comparison)
    return comparison
