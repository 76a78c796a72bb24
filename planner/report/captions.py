"""Captions of a report's figures: what each of them shows and what follows from it, worked out from the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planner.predict.costs import FULL
from planner.predict.objectives import MEAN, OBJECTIVE_WORDS
from planner.report.data import (
    Depth,
    ReportData,
    committed,
    depths,
    headline,
    matrix_groups,
    measured_mean_ms,
    quantile_of,
    reach_share,
    survivor_chain,
    without_exits,
)

_TYPICAL = 0.9  # the threshold of the example where the plan has none


def caption_of(name: str, data: ReportData) -> str:
    """Returns the caption of a figure; plain text."""
    return _CAPTIONS[name](data)


def plural(count: int, noun: str) -> str:
    """Returns ``1 exit`` or ``2 exits``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def join(words: Sequence[str]) -> str:
    """Returns ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def faster(speedup: float) -> str:
    """Returns a ratio of latencies in words: ``4.3 times as fast`` or ``1.2 times as slow``."""
    return f"{speedup:.1f} times as fast" if speedup >= 1 else f"{1 / speedup:.2f} times as slow"


def summarise(data: ReportData) -> str:
    """Returns the result of the run in two sentences."""
    found, plan = headline(data), data.plan
    if not plan.exits:
        return (
            f"The planner found no exits that make {data.spec.name} faster within a tolerance of {plan.tolerance:.3g}: "
            "the full network is served as it is."
        )
    ratio = found.metric_ratio
    kept = "" if ratio is None else f", and {ratio:.2%} of the full network's {data.task_word} is kept"
    if found.agreement:
        kept = f", and {ratio:.2%} of the queries get the full network's answer"
    return (
        f"On {_measured_on(data)}, the mean query has its answer after {found.early_ms:.2f} ms instead of "
        f"{found.full_ms:.2f} ms: {faster(found.speedup)}{kept}. Queries may leave at "
        f"{plural(len(plan.exits), 'place')} before the end: {join([exit_.cut for exit_ in plan.exits])}."
    )


def _measured_on(data: ReportData) -> str:
    if data.bench is None:
        return f"calibration queries in batches of {data.plan.batch_size}, as measured by the planner"
    held_out = "held-out test" if data.bench["test_data"] == "held out" else "test"
    return f"{data.bench['samples']} {held_out} queries in batches of {data.bench['batch_size']}"


def _caption_graph(data: ReportData) -> str:
    heads = len(data.spec.candidates)
    if not data.spec.cuts:
        return "The network is one piece: it was exported without cuts, so no query can leave early."
    if not data.plan.exits:
        return (
            f"The network falls into {plural(len(data.spec.segments), 'segment')}, and after {heads} of them an exit "
            "head can answer. The plan uses none of them: every query is answered by the final head."
        )
    first = data.plan.exits[0]
    return (
        f"The network falls into {plural(len(data.spec.segments), 'segment')}, and after {heads} of them an exit "
        f"head can answer; the plan uses the filled ones. {first.leaving_share:.1%} of the queries leave at "
        f"{first.cut}, which takes {reach_share(data, first.cut):.0%} of the full network's time to reach, its exit "
        "head included."
    )


def _caption_accuracy(data: ReportData) -> str:
    found = depths(data)
    first, last = found[0], found[-1]
    required = last.metric * (1 - data.plan.tolerance)
    enough = next((depth for depth in found[:-1] if depth.metric >= required), None)
    text = (
        f"If every query left at {first.name}, the {data.metric_word} would be {first.metric:.1%}; the full network "
        f"has {last.metric:.1%}. "
    )
    return text + _first_enough(enough, data)


def _first_enough(enough: Depth | None, data: ReportData) -> str:
    required = f"the required {100 * (1 - data.plan.tolerance):.4g}% of that"
    if enough is None:
        return f"No exit alone keeps {required}, so only queries whose answer is confident may leave early."
    return (
        f"{enough.name} is the first exit that alone keeps {required}, after {enough.share_of_time:.0%} of the full "
        "network's time; to leave earlier, a query has to be confident."
    )


def _caption_thresholds(data: ReportData) -> str:
    chosen = data.chosen
    name, at = (chosen.cuts[0], chosen.thresholds[0]) if chosen.cuts else (data.trace.exits[0], _TYPICAL)
    row = data.trace.exits.index(name)
    leaves = data.trace.confidence[row] >= np.float32(at)
    metric = data.trace.metric[row].astype(np.float64)
    text = "A query leaves when the exit's confidence reaches the threshold. "
    if not leaves.any():
        return f"{text}At {name}, with a threshold of {at:.3g} no query leaves."
    return (
        f"{text}At {name}, a threshold of {at:.3g} lets {leaves.mean():.1%} leave with {data.metric_word} "
        f"{metric[leaves].mean():.1%}; with no threshold all would leave, with {metric.mean():.1%}."
    )


def _caption_patterns(data: ReportData) -> str:
    bpm = data.patterns
    counts = np.arange(bpm.batch_size + 1)
    mean = bpm.probability @ counts
    fewest = int(mean.argmin())
    most = int(quantile_of(bpm.probability.cumsum(axis=1), 0.99)[0])
    text = (
        "The batching pattern matrix: how many of a batch go on past an exit, each candidate taken by itself at the "
        f"threshold that the tolerance allows it. On average {mean[0]:.1f} of {plural(bpm.batch_size, 'row')} go on "
        f"past {bpm.exits[0]}, and at most {most} in 99 of 100 batches"
    )
    return f"{text}; {bpm.exits[fewest]} lets the fewest pass, {mean[fewest]:.1f}." if fewest else f"{text}."


def _caption_times(data: ReportData) -> str:
    sizes, full = data.itm.batch_sizes, data.itm.row_ms(FULL)
    text = (
        "The inference time matrix: measured milliseconds of every part at every batch size (medians). The full "
        f"network takes {full[0]:.3g} ms for {plural(sizes[0], 'row')}"
    )
    if len(sizes) > 1:
        text += f" and {full[-1]:.3g} ms for {sizes[-1]}, {full[-1] / sizes[-1]:.3g} ms each"
    heads = [data.itm.row_ms(row)[-1] / full[-1] for row in matrix_groups(data)["exit heads"]]
    if not heads:
        return f"{text}."
    least, most = f"{min(heads):.1%}", f"{max(heads):.1%}"
    return f"{text}; an exit head costs {least if least == most else f'{least} to {most}'} of the full network."


def _caption_survivors(data: ReportData) -> str:
    chain = survivor_chain(data)
    if not data.plan.exits:
        return f"Without exits all {data.plan.batch_size} rows of a batch go through the whole network."
    text = (
        f"How a batch of {data.plan.batch_size} shrinks: on average {chain.expected[-1]:.1f} rows are left when the "
        f"last of {len(chain.stages)} stages begins"
    )
    return (
        f"{text}, so that the deep part of the network runs on {chain.survival[-1]:.1%} of the queries. Of 100 "
        f"batches drawn at random, 98 have {chain.low[-1]} to {chain.high[-1]} rows there; of those in the "
        f"calibration data's own order, {chain.recorded_low[-1]} to {chain.recorded_high[-1]}."
    )


def _caption_latency(data: ReportData) -> str:
    if data.bench is None:
        return ""
    full, early, p99 = data.bench["full"], data.bench["early_exit"], data.bench["speedup_p99"]
    return (
        f"Measured latency of {data.bench['samples']} queries, {plural(data.bench['rounds'], 'round')} each, full "
        f"network and bundle in turns. The mean query takes {early['mean_latency_ms']:.2f} instead of "
        f"{full['mean_latency_ms']:.2f} ms ({faster(data.bench['speedup_mean'])}); 99 of 100 queries have their "
        f"answer within {early['p99_ms']:.2f} instead of {full['p99_ms']:.2f} ms ({faster(p99)})."
    )


def _caption_answers(_: ReportData) -> str:
    return (
        "A few samples of the calibration data, the one that the first exit is surest of at the top: what each exit of "
        "the plan answers, and what the final head would. Bold is the answer that the sample leaves with."
    )


def _caption_pareto(data: ReportData) -> str:
    sweep, points = data.sweep, data.sweep.points
    tight, loose = points[0], points[-1]
    settled = next(point for point in points if sweep.time_ms(point) <= sweep.time_ms(loose) * (1 + 1e-9))
    by = "" if sweep.objective == MEAN else f" (by the {OBJECTIVE_WORDS[sweep.objective]})"
    text = (
        f"What more tolerance buys: from {faster(tight.speedup)}{by} at a tolerance of {tight.tolerance:.3g} to "
        f"{faster(loose.speedup)} at {settled.tolerance:.3g}, the largest that helps. "
        if sweep.time_ms(loose) < sweep.time_ms(tight)
        else f"More tolerance buys nothing here: the plan is {faster(tight.speedup)}{by} at every tolerance. "
    )
    return text + _explain_committed(data)


def _explain_committed(data: ReportData) -> str:
    sweep = data.sweep
    within = [sweep.time_ms(point) for point in sweep.points if point.tolerance <= data.plan.tolerance]
    mine = committed(data).searched_ms(sweep.objective)
    if not within or mine is None or mine <= min(within) * (1 + 1e-9):
        return "The committed plan is the one with the least expected time within its tolerance."
    why = (
        "of the best few, it was the fastest when they were measured end to end"
        if data.plan.certificate is None
        else "the points are tuned and judged on the same samples, while its tolerance is certified on others"
    )
    return (
        f"The committed plan is expected to take {mine / min(within) - 1:.1%} longer than the best point within its "
        f"tolerance: {why}."
    )


def describe_measured(data: ReportData) -> str:
    """Returns how the committed plan's prediction compares with the planner's own measurement."""
    predicted_ms, measured_ms = committed(data).predicted_mean_ms, measured_mean_ms(committed(data))
    return (
        f"The planner predicted {predicted_ms:.3f} ms for the mean query and measured {measured_ms:.3f} ms (the "
        f"prediction is {predicted_ms / measured_ms:.0%} of that); for the full network it measured "
        f"{measured_mean_ms(without_exits(data)):.3f} ms."
    )


_CAPTIONS: Mapping[str, Callable[[ReportData], str]] = {
    "cut_graph": _caption_graph,
    "accuracy_by_depth": _caption_accuracy,
    "threshold_curves": _caption_thresholds,
    "batching_pattern": _caption_patterns,
    "inference_times": _caption_times,
    "survivors": _caption_survivors,
    "latency": _caption_latency,
    "answers": _caption_answers,
    "pareto": _caption_pareto,
}
