"""Scouting of a network: its cuts are timed and probed, and the range of the saving is worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from artifacts import Cut, GraphError, InferenceTimeMatrix, InputError, Model, RunFolder, Trace
from artifacts.console import track
from calibration import CalibrationOptions, EngineChoice, Samples, SegmentRunner, ask_network
from planner.config import PlanConfig, TimingConfig, batch_sizes_up_to
from planner.measure.timing import EngineSettings, model_graphs, time_graphs
from planner.predict.costs import NetworkCosts, gather_row, head_row, segment_row
from planner.scout.probes import confidence_of, make_targets, pool_features, predict_held_out
from planner.scout.saving import Saving, estimate_savings, judge_savings
from planner.workflow.pace import Pace, about, measure_pace

_ROWS = 8  # run together: features of all cuts are held at once
_LEAST_SAMPLES = 40
_MOST_CUTS = 16
_SAMPLES_BUDGET_S, _TIMING_BUDGET_S = 40.0, 40.0
_SIZES = (1, 4, 8, 16, 32)
_LEAST_ROUNDS, _ROUNDS, _WARM_UP = 3, 5, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedCut:
    """What was found at one cut.

    Attributes:
        name: of the cut.
        reached_ms: from the input to it, at the full batch.
        share: of the full network's time.
        metric: of the probe's answers; ``None`` without labels.
        agreement: with the full network.
    """

    name: str
    reached_ms: float
    share: float
    metric: float | None
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scouted:
    """What scouting found.

    Attributes:
        model: name of the network.
        data: name of the samples.
        samples: how many were probed with.
        labelled: whether they have right answers; without, every metric is the agreement with the full network.
        engine, threads, batch_size: that was timed.
        full_ms: the mean query of the full network.
        full_metric: of the full network on these samples; ``None`` without labels.
        chance: metric of the most frequent class alone; ``None`` without labels.
        cuts: those that were probed, in the order of the data flow.
        savings: by tolerance.
        verdict: ``yes``, ``perhaps`` or ``no``.
    """

    model: str
    data: str
    samples: int
    labelled: bool
    engine: str
    threads: int
    batch_size: int
    full_ms: float
    full_metric: float | None
    chance: float | None
    cuts: tuple[ProbedCut, ...]
    savings: tuple[Saving, ...]
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a network says to n samples.

    Attributes:
        features: cut name -> (n, d) pooled features, for the cuts that are probed.
        answers: (n, classes) of the whole network.
        labels: (n,) the right classes; ``None`` without.
        halves: (n,) bool: which half a sample belongs to, every class in both.
    """

    features: Mapping[str, np.ndarray]
    answers: np.ndarray
    labels: np.ndarray | None
    halves: np.ndarray

    def probe(self) -> Trace:
        """Returns the answers of the probes to samples that they were not fitted on, and those of the network."""
        targets, final = make_targets(self.answers, self.labels), self.answers.argmax(axis=1)
        predicted = [predict_held_out(features, targets, self.halves) for features in self.features.values()]
        classes = np.stack([*(found.argmax(axis=1) for found in predicted), final])
        agreement = (classes == final).astype(np.float32)
        return Trace(
            exits=tuple(self.features),
            confidence=np.stack([*map(confidence_of, predicted), np.ones(len(final), np.float32)]),
            metric=agreement if self.labels is None else (classes == self.labels).astype(np.float32),
            agreement=agreement,
            labelled=self.labels is not None,
        )


def scout_network(
    run: RunFolder,
    model: Model,
    samples: Samples,
    config: PlanConfig,
    *,
    count: int,
    options: CalibrationOptions,
) -> Scouted:
    """Times the cuts of a network, probes them and works out what exits would save.

    Args:
        run: holds the cache of engines; a temporary folder will do.
        model: exported with segments; exit heads that it has are not asked.
        samples: the calibrate part is drawn from, then the train part; the test part is left alone.
        config: backend, threads, batch size, and how the tolerance would be certified.
        count: how many samples to probe with, at most; fewer where reading and running them would take too long.
        options: receives lines about the progress; with ``force`` a network that is no good is a warning.

    Raises:
        GraphError: the network has no cuts, its answer is not a choice among classes, or depends on other rows.
        InputError: there are too few samples, or the network is no good on them.
    """
    report = options.report
    check_scoutable(model)
    pace = measure_pace(model, samples, config)
    drawn = draw_samples(samples, _fitting_count(count, pace), seed=config.certify.seed)
    timing = choose_timing(config.batch_size, pace)
    config = replace(config, batch_size=timing.batch_sizes[-1], timing=timing)
    segments = len(model.spec.segments)
    report(f"timing {segments} segments{_expect(None if pace is None else pace.timing_s(config))}")
    itm = _time_parts(run, model, config)
    cuts = choose_cuts(model, itm)
    expected = None if pace is None else pace.passing_s(len(drawn))
    report(f"probing {len(cuts)} of {segments - 1} cuts with {len(drawn)} samples of {samples.name}{_expect(expected)}")
    engine = EngineChoice(backend=config.backend, threads=config.threads)
    with SegmentRunner(model, run.engines, engine, rows=_ROWS, with_heads=False) as runner:
        ask_network(model, runner, samples, options.task_of(model), rows=_ROWS, options=options)
        reading = _read_samples(runner, samples, drawn, cuts, seed=config.certify.seed)
    costs = NetworkCosts(itm=itm, cuts=tuple(cut.name for cut in model.spec.cuts), batch_size=config.batch_size)
    return _conclude(model, samples, config, costs, reading)


def check_scoutable(model: Model) -> None:
    """Refuses a network without cuts, and one whose answers probes cannot give."""
    spec = model.spec
    if len(spec.cuts) < 2:
        raise GraphError(f"{spec.name} has no cut at which an exit could sit: exits cannot save anything on it")
    if spec.full.confidence is None or len(spec.full.output(spec.full.answers[0]).row_shape) != 1:
        raise GraphError(f"{spec.name} does not choose among classes, and there are probes for that alone")


def _expect(seconds: float | None) -> str:
    return "" if seconds is None else f": {about(seconds)}"


def _fitting_count(count: int, pace: Pace | None) -> int:
    """Returns how many samples can be read and run in the time that there is for it."""
    if pace is None:
        return count
    return max(_LEAST_SAMPLES, min(count, int(_SAMPLES_BUDGET_S / max(pace.passing_s(1), 1e-9))))


def draw_samples(samples: Samples, count: int, *, seed: int) -> np.ndarray:
    """Returns up to ``count`` ascending indices, drawn at random of the calibrate part; where that does not do, of the
    train part too, on which a network may be better than it is.

    Raises:
        InputError: there are fewer than can be probed with.
    """
    random = np.random.default_rng(seed)
    available = np.concatenate([random.permutation(samples.indices_of(part)) for part in ("calibrate", "train")])
    if len(available) < _LEAST_SAMPLES:
        raise InputError(
            f"{samples.name} has {len(available)} samples to train and calibrate with; at least {_LEAST_SAMPLES} are "
            "needed to probe a network"
        )
    return np.sort(available[:count])


def choose_timing(batch_size: int, pace: Pace | None) -> TimingConfig:
    """Returns the batch sizes to time: as many as fit the time that there is for it, of a slow network smaller ones."""
    smaller = sorted({min(batch_size, size) for size in (batch_size, 8, 4)}, reverse=True)
    for sizes in (batch_sizes_up_to(batch_size, _SIZES), *(tuple(sorted({1, size})) for size in smaller)):
        timing = TimingConfig(batch_sizes=sizes, rounds=_ROUNDS, warm_up=_WARM_UP, budget_s=_TIMING_BUDGET_S)
        rows = 2 * sum(sizes) * (_LEAST_ROUNDS + _WARM_UP)
        if pace is None or rows * pace.network_s <= _TIMING_BUDGET_S:
            break
    return timing


def _time_parts(run: RunFolder, model: Model, config: PlanConfig) -> InferenceTimeMatrix:
    """Returns the times of all segments, of the final head and of the whole network; those of exits are 0."""
    bare = replace(model, spec=replace(model.spec, heads={}))
    itm = time_graphs(model_graphs(bare), model.spec, run.engines, config.timing, EngineSettings.of(config))
    none = dict.fromkeys(
        (row(cut.name) for cut in model.spec.cuts[:-1] for row in (head_row, gather_row)), (0.0,) * len(itm.batch_sizes)
    )
    return replace(itm, median_ms={**itm.median_ms, **none}, spread_ms={**itm.spread_ms, **none})


def choose_cuts(model: Model, itm: InferenceTimeMatrix) -> tuple[Cut, ...]:
    """Returns the cuts to probe: all but the last one, at most sixteen, spread over the measured time."""
    candidates = model.spec.cuts[:-1]
    if len(candidates) <= _MOST_CUTS:
        return candidates
    reached = np.cumsum([itm.row_ms(segment_row(index))[-1] for index in range(len(candidates))])
    aims = np.linspace(reached[0], reached[-1], _MOST_CUTS)
    nearest = sorted({int(np.abs(reached - aim).argmin()) for aim in aims})
    return tuple(candidates[index] for index in nearest)


def _read_samples(
    runner: SegmentRunner, samples: Samples, drawn: np.ndarray, cuts: Sequence[Cut], *, seed: int
) -> Reading:
    """Runs samples through the segments and keeps what probes read of them."""
    features: dict[str, list[np.ndarray]] = {cut.name: [] for cut in cuts}
    answers, labels = [], []
    for start in track(range(0, len(drawn), _ROWS), description="probing", total=-(-len(drawn) // _ROWS)):
        chunk = drawn[start : start + _ROWS]
        count = runner.run(samples.inputs(chunk))
        found = runner.features(count, features)
        for name, pooled in features.items():
            pooled.append(pool_features(found[name]))
        answers.append(runner.answers(count)[-1][0][0])
        if samples.labelled:
            labels.append(samples.targets(chunk))
    said = np.concatenate(answers)
    right = np.concatenate(labels) if labels else None
    return Reading(
        features={name: np.concatenate(pooled) for name, pooled in features.items()},
        answers=said,
        labels=right,
        halves=split_evenly(said.argmax(axis=1) if right is None else right, seed=seed),
    )


def split_evenly(classes: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns (n,) bool: a half of the samples of every class, drawn at random."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    halves = np.zeros(len(classes), bool)
    halves[order[::2]] = True
    return halves


def _conclude(
    model: Model, samples: Samples, config: PlanConfig, costs: NetworkCosts, reading: Reading
) -> Scouted:  # fmt: skip
    trace, labels = reading.probe(), reading.labels
    savings = estimate_savings(
        trace,
        reading.halves,
        costs,
        delta=None if config.certify.method == "none" else config.certify.delta,
        calibrating=len(samples.indices_of("calibrate")),
    )
    means = trace.summarise()
    return Scouted(
        model=model.spec.name,
        data=samples.name,
        samples=trace.sample_count,
        labelled=trace.labelled,
        engine=config.backend,
        threads=config.threads,
        batch_size=config.batch_size,
        full_ms=costs.full_ms,
        full_metric=means[-1]["metric"],
        chance=None if labels is None else float(np.bincount(labels).max() / len(labels)),
        cuts=tuple(
            ProbedCut(
                name=found["exit"],
                reached_ms=float(costs.stage_cost(None, found["exit"])[-1]),
                share=float(costs.stage_cost(None, found["exit"])[-1]) / costs.full_ms,
                metric=found["metric"],
                agreement=found["agreement"],
            )
            for found in means[:-1]
        ),
        savings=savings,
        verdict=judge_savings(savings),
    )
