"""Does it pay to look at the answer of the exit before? Measured on the trace of a run.

    python benchmarks/patience.py --run runs/resnet

A rule leaves a row at the first exit whose score reaches one threshold, the same at every exit. Of all thresholds that
keep the metric, the one with the smallest mean depth counts: the share of the network's exits that a row goes through.
The scores:

``confidence``       the trace's own, mostly the largest probability.
``agreement``        the confidence where the answer is that of the exit before, else never (Zhou et al., "BERT
                     Loses Patience", NeurIPS 2020, with a patience of one and a threshold besides).
``bonus B``          the log odds of the confidence, plus B where the two exits agree.
``evidence B``       the log odds, plus B times those of the exit before: added where they agree, else subtracted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts import TRACE_NPZ, InputError, Trace, find_run
from artifacts.console import add_common_arguments, print_table, run_command

_TOLERANCES = (0.01, 0.02, 0.05)
_THRESHOLDS = 1000
_WEIGHTS = (0.25, 0.5, 1.0)
_LEAST = 1e-6


def make_scores(trace: Trace) -> dict[str, np.ndarray]:
    """Returns rule -> (exits, N) score of each sample at each exit, the final head left out."""
    if trace.predictions is None:
        raise InputError("the trace holds no classes; agreement of two exits is that of their classes")
    confidence = trace.confidence[:-1].astype(np.float64)
    agree = np.zeros_like(confidence, bool)
    agree[1:] = trace.predictions[1:-1] == trace.predictions[:-2]
    bounded = np.clip(confidence, _LEAST, 1 - _LEAST)
    odds = np.log(bounded / (1 - bounded))
    before = np.zeros_like(odds)
    before[1:] = np.where(agree[1:], odds[:-1], -odds[:-1])
    return {
        "confidence": confidence,
        "agreement": np.where(agree, confidence, -np.inf),
        **{f"bonus {weight}": odds + weight * agree for weight in _WEIGHTS},
        **{f"evidence {weight}": odds + weight * before for weight in _WEIGHTS},
    }


def smallest_depth(trace: Trace, score: np.ndarray, tolerance: float) -> float:
    """Returns the smallest mean share of the exits that rows go through while the metric stays within a tolerance."""
    last, rows = len(score), np.arange(score.shape[1])
    wanted = trace.metric[-1].mean(dtype=np.float64) * (1 - tolerance)
    best = 1.0
    for threshold in np.quantile(score[np.isfinite(score)], np.linspace(0, 1, _THRESHOLDS)):
        leaves = score >= threshold
        exits = np.where(leaves.any(axis=0), leaves.argmax(axis=0), last)
        if trace.metric[exits, rows].mean(dtype=np.float64) >= wanted:
            best = min(best, float((exits + 1).mean()) / (last + 1))
    return best


def compare(trace: Trace) -> dict[str, list[float]]:
    """Returns rule -> smallest mean depth at each tolerance."""
    return {
        rule: [smallest_depth(trace, score, tolerance) for tolerance in _TOLERANCES]
        for rule, score in make_scores(trace).items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/patience.py", description=__doc__.partition("\n")[0])
    add_common_arguments(parser)

    def body(arguments: argparse.Namespace) -> dict[str, Any]:
        trace = Trace.load(find_run(arguments.run).trace / TRACE_NPZ)
        depths = compare(trace)
        rows = [(rule, *(f"{depth:.3f}" for depth in found)) for rule, found in depths.items()]
        columns = ["mean depth under", *(f"tolerance {tolerance}" for tolerance in _TOLERANCES)]
        print_table(f"{trace.sample_count} samples", columns, rows, to_stderr=arguments.json == "-")
        return {"samples": trace.sample_count, "tolerances": list(_TOLERANCES), "mean_depth": depths}

    return run_command(body, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
