"""Configuration of a planning run. argparse takes its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import MAX_SOFTMAX, OPTIONAL, UsageError, unknown_name
from calibration import RISKS
from planner.predict.objectives import MEAN
from planner.predict.traffic import Load
from planner.search.rules import GREEDY, JOINT, OFFERED_SEARCHES, SearchRules, SlowBatchRule
from planner.search.threshold_grids import DEFAULT_STEP, threshold_grid

DEFAULT_SIZES = (1, 2, 4, 8, 12, 16, 24, 32)


def batch_sizes_up_to(batch_size: int, usual: tuple[int, ...] = DEFAULT_SIZES) -> tuple[int, ...]:
    """Returns the batch sizes to time: the usual ones below ``batch_size``, in steps of half an octave, and itself."""
    sizes = list(usual)
    while sizes[-1] < batch_size:
        sizes += [sizes[-1] * 3 // 2, sizes[-1] * 2]
    return (*sorted({size for size in sizes if size < batch_size}), batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingConfig:
    """How to time.

    Attributes:
        batch_sizes: ascending; the last is the largest batch that enters the network.
        rounds: how often each row is timed at each batch size.
        warm_up: untimed runs before.
        budget_s: rounds stop when this much time is spent, after the third at the earliest.
    """

    batch_sizes: tuple[int, ...] = DEFAULT_SIZES
    rounds: int = 20
    warm_up: int = 2
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise UsageError(
                f"--batch-sizes {','.join(map(str, sizes))}: expected ascending numbers from 1, e.g. 1,8,32"
            )
        if self.rounds < 1 or self.warm_up < 0:
            raise UsageError(f"--rounds {self.rounds}: expected at least 1")
        if not self.budget_s > 0:
            raise UsageError(f"--time-budget {self.budget_s}: expected seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """How the best plans are measured end to end before one is committed.

    Attributes:
        contenders: how many of the best plans, besides the one without exits.
        rounds: how often every batch runs through every plan.
        queries: how many different queries, drawn from the calibration data; a mean over fewer would depend more on
            which of them were drawn than on the plans.
        budget_s: rounds stop when this much time is spent, after the first at the earliest.
    """

    contenders: int = 3
    rounds: int = 10
    queries: int = 512
    budget_s: float = 30.0

    def __post_init__(self) -> None:
        if self.contenders < 1:
            raise UsageError(f"--contenders {self.contenders}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyConfig:
    """How the tolerance is certified.

    Attributes:
        method: ``ltt`` certifies it on samples that were not used for tuning; ``none`` is the paper's way, without a
            guarantee.
        risk: ``metric``: relative loss of the task metric; ``agreement``: disagreement with the final head, which
            needs no labels.
        delta: probability with which the guarantee may fail.
        seed: of the split into samples for tuning and samples for the test.
        reference: the network that the tolerance refers to: ``fp32``, that of the same name in float32; ``self``, the
            one that is planned for; ``None``: in float32 where another one is planned for.
    """

    method: str = "ltt"
    risk: str = "metric"
    delta: float = 0.05
    seed: int = 0
    reference: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.reference not in (None, *REFERENCES):
            raise unknown_name("reference", str(self.reference), REFERENCES)
        if self.method not in CERTIFY_METHODS:
            raise unknown_name("way to certify", self.method, CERTIFY_METHODS)
        if self.risk not in RISKS:
            raise unknown_name("risk", self.risk, RISKS)
        if not 0 < self.delta < 1:
            raise UsageError(f"--delta {self.delta}: expected a probability between 0 and 1, e.g. 0.05")
        if self.seed < 0:
            raise UsageError(f"--certify-seed {self.seed}: expected a number from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Configuration of a planning run.

    Attributes:
        tolerance: allowed relative loss of the metric, in [0, 1).
        batch_size: the largest batch that enters the network.
        backend: the engine backend, e.g. ``onnxruntime``.
        profiles: how TensorRT's shape profiles are laid out, of ``engines.PROFILE_WAYS``; ``None``: the backend's own
            way.
        threads: of each engine.
        load: the batches that enter; ``None``: all have ``batch_size`` queries.
        search: name of the search, one of ``rules.OFFERED_SEARCHES``.
        objective: the value that the plan minimises, one of ``objectives.OBJECTIVES``.
        confidence: by what rows leave: ``max-softmax``, the largest probability; ``learned``, a model of each exit that
            is fitted to the samples for tuning; ``auto``: the one with the faster plan on these.
        max_exits: the most exits that a plan may have; ``None``: as many as pay.
        max_engines: the most engines of a bundle, where an engine is bound to one batch size; ``None``: any number.
        memory_mb: the most megabytes that their files may have together; ``None``: any.
        grid_step: distance of the greedy search's thresholds.
        tail: how many batches may be slower than the full network.
        certify: how the tolerance is certified.
        timing: how the engines are timed.
        measure: how the best plans are measured.
    """

    tolerance: float = 0.01
    batch_size: int = 32
    backend: str = "onnxruntime"
    profiles: str | None = None
    threads: int = 1
    load: Load | None = None
    search: str = JOINT
    objective: str = MEAN
    confidence: str = "auto"
    max_exits: int | None = None
    max_engines: int | None = None
    memory_mb: float | None = None
    grid_step: float = DEFAULT_STEP
    tail: SlowBatchRule = field(default_factory=SlowBatchRule)
    certify: CertifyConfig = field(default_factory=CertifyConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UsageError(
                f"--tolerance {self.tolerance}: expected a relative loss from 0 to below 1, e.g. 0.01 to keep 99 %"
            )
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: expected at least 1")
        if self.threads < 1:
            raise UsageError(f"--threads {self.threads}: expected at least 1")
        threshold_grid(self.grid_step)
        if self.search not in OFFERED_SEARCHES:
            raise unknown_name("search", self.search, OFFERED_SEARCHES)
        if self.confidence not in CONFIDENCES:
            raise unknown_name("confidence", self.confidence, CONFIDENCES)
        _ = self.rules  # checks itself
        if self.search == GREEDY and (self.objective != MEAN or self.max_exits is not None):
            raise UsageError("--search greedy minimises the mean latency with any number of exits, as in the paper; "
                             "leave out --objective and --max-exits, or take --search joint")  # fmt: skip
        if self.max_engines is not None and self.max_engines < 1:
            raise UsageError(f"--max-engines {self.max_engines}: expected at least 1")
        if self.memory_mb is not None and not self.memory_mb > 0:
            raise UsageError(f"--memory-mb {self.memory_mb}: expected megabytes above 0")
        if self.load is not None and self.load.largest != self.batch_size:
            raise UsageError(
                f"--batch-distribution: its largest batch has {self.load.largest} queries, --batch-size says "
                f"{self.batch_size}; leave --batch-size out"
            )
        if self.timing.batch_sizes[-1] != self.batch_size:
            raise UsageError(
                f"--batch-sizes must end with --batch-size {self.batch_size}, got {self.timing.batch_sizes[-1]}"
            )

    @property
    def rules(self) -> SearchRules:
        """Which plans may win, and by which time."""
        return SearchRules(objective=self.objective, max_exits=self.max_exits, slow_batches=self.tail)


SELF = "self"
REFERENCES = ("fp32", SELF)
CERTIFY_METHODS = ("ltt", "none")
AUTO, LEARNED = "auto", "learned"
CONFIDENCES = (AUTO, MAX_SOFTMAX, LEARNED)
