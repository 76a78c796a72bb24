"""Pace: what one sample costs to read and to run through the network, measured on a few before long work begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

from artifacts import Model
from calibration import PARTS, Samples
from engines import DEFAULT_BACKEND, GraphRunner
from planner.config import PlanConfig
from planner.measure.timing import Clock

_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one sample takes, in seconds.

    Attributes:
        reading_s: to read, decode and prepare it.
        network_s: to run it through the whole network, in a batch of ``samples`` on the processor.
        samples: how many it was measured on.
    """

    reading_s: float
    network_s: float
    samples: int

    def describe(self) -> str:
        """Returns what was measured, in words."""
        return (
            f"a sample takes {self.reading_s * 1e3:.3g} ms to read and {self.network_s * 1e3:.3g} ms to run through "
            f"the network, measured on {self.samples}"
        )

    def passing_s(self, count: int) -> float:
        """Returns how long some samples take to be read and run through the whole network once."""
        return count * (self.reading_s + self.network_s)

    def timing_s(self, config: PlanConfig) -> float:
        """Returns how long the engines are timed: every part and the whole network, at every batch size, in rounds."""
        timing = config.timing
        rows = 2 * sum(timing.batch_sizes)
        return rows * self.network_s * timing.warm_up + min(timing.budget_s, rows * self.network_s * timing.rounds)

    def measuring_s(self, config: PlanConfig) -> float:
        """Returns how long the best plans are measured end to end, at most: none is slower than the full network."""
        measure = config.measure
        return min(measure.budget_s, measure.rounds * (measure.contenders + 2) * measure.queries * self.network_s)


def measure_pace(
    model: Model, samples: Samples, config: PlanConfig, *, clock: Clock = time.perf_counter
) -> Pace | None:
    """Reads a few samples and runs them through the whole network, after as many others to warm up.

    Returns:
        What a sample takes; ``None`` where the engines are not those of the processor, whose time would say nothing,
        or where there are no samples.
    """
    if config.backend != DEFAULT_BACKEND:
        return None
    available = max((samples.indices_of(part) for part in PARTS), key=len)
    if len(available) == 0:
        return None
    first, second = available[:_ROWS], available[-_ROWS:]
    with GraphRunner(model.path(model.spec.full), threads=config.threads) as network:
        network.run(samples.inputs(first))
        began = clock()
        inputs = samples.inputs(second)
        read = clock()
        network.run(inputs)
        done = clock()
    return Pace(
        reading_s=(read - began) / len(second), network_s=(done - read) / len(second), samples=len(second)
    )  # fmt: skip


def about(seconds: float) -> str:
    """Returns a time in round numbers: ``about 40 s``, ``about 3 min``, ``about 2 h``."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
