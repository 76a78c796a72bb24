"""``RuntimeOptions``: how a runtime checks its input, keeps statistics, and shadows."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import Task, UsageError
from runtime.monitor.drift import DriftConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """Options of a runtime; ``Runtime.load`` takes them one by one.

    Attributes:
        check_finite: refuse rows with NaN or infinity.
        stats: keep statistics.
        drift: when to raise an alarm; ``None``: never. Needs the reference in the exit plan, which plans of release
            0.1.0 may lack.
        shadow_fraction: this share of the rows, drawn at random, is carried on to the end even if it leaves early.
        shadow_seed: of the draw; ``None``: another one in every process.
        task: the task of the network, where it is not one of ``artifacts.TASKS``; its name must be the bundle's.
            Needed for shadowing alone.
        chain_graph: make one CUDA graph of all stages, where the device can.

    Raises:
        UsageError: shadowing without statistics.
    """

    check_finite: bool = True
    stats: bool = True
    drift: DriftConfig | None = field(default_factory=DriftConfig)
    shadow_fraction: float = 0.0
    shadow_seed: int | None = None
    task: Task | None = None
    chain_graph: bool = False

    def __post_init__(self) -> None:
        if self.shadow_fraction != 0 and not self.stats:
            raise UsageError(f"shadow_fraction={self.shadow_fraction} is for the statistics: open without stats=False")
